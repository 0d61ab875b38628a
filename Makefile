# Everything a developer needs: `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-matrix soak check fmt
.DELETE_ON_ERROR:
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
# Newer than pyproject.toml: what it asks for is installed, and setup has nothing to do.
INSTALLED := $(VENV)/.installed

# One thread per process: demo and tests run several ranks on the cores of one machine.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(INSTALLED) ## make the virtual environment and install the project with its pinned dependencies

demo: $(INSTALLED) ## raw text to a trained, halting model and a report, on two local ranks
	$(BIN)/megaponder demo

test: $(INSTALLED) ## unit tests, then several ranks, then whole commands
	$(BIN)/pytest tests/test_import_rules.py tests/unit
	$(BIN)/pytest tests/multiprocess
	$(BIN)/pytest tests/end_to_end

test-matrix: $(INSTALLED) ## every method on every layout, with every recompute and J, against one process
	$(BIN)/pytest tests/multiprocess -m matrix

soak: $(INSTALLED) ## a training that is killed, starved and damaged thirty times, against one that is not
	$(BIN)/pytest tests/end_to_end -m soak -s

check: $(INSTALLED) ## lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(INSTALLED) ## format the sources and mend what the linter can mend
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev,hf,eval,ray]'
	@touch $@

$(BIN)/python:
	@for candidate in python3.11 python3.12 python3 python; do \
		if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then \
			echo "creating $(VENV) with $$candidate"; \
			"$$candidate" -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); \
			echo "error: $$candidate could not create a virtual environment; on Debian install its python3.X-venv" >&2; \
			exit 1; \
		fi; \
	done; \
	echo "error: Python 3.11 or 3.12 must be installed as python3.11, python3.12, python3 or python" >&2; \
	exit 1
