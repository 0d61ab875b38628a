# Everything a developer needs; `make help` lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup demo continued-demo ladder docs test test-clusters test-matrix test-browser test-megatron-next test-gpu gpu-check soak check fmt
.DELETE_ON_ERROR:
SHELL := /bin/bash

VENV := .venv
BIN := $(VENV)/bin
# While it is newer than pyproject.toml, everything is installed and setup has nothing to do.
INSTALLED := $(VENV)/.installed

# The Megatron-Core of newer Pythons, for test-megatron-next.
MEGATRON_NEXT := .megatron-next

# Processes that run tests at the same time; the tests of one file stay in one of them.
TEST_WORKERS ?= 3
# With 2, the tests of SLURM run beside those of Ray; some of their limits are too short for a busy machine.
CLUSTER_WORKERS ?=

# One thread per process: the demo and the tests run several ranks on the cores of one machine.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1

help: ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup: $(INSTALLED) ## create the virtual environment and install the project with its pinned dependencies

demo: $(INSTALLED) ## go from raw text to a trained model and a report on two local ranks
	$(BIN)/megaponder demo

continued-demo: $(INSTALLED) ## continue SmolLM2-135M as a pondering model beside a control; resumes
	OMP_NUM_THREADS=$$(nproc) $(BIN)/python -m scripts.continued_demo

ladder: $(INSTALLED) ## train every method on the same real text; takes hours, and resumes
	$(BIN)/python -m scripts.ladder prepare
	OMP_NUM_THREADS=$$(nproc) $(BIN)/python -m scripts.ladder run
	$(BIN)/python -m scripts.ladder results

test: $(INSTALLED) ## run all tests that need no cluster: units, several ranks, whole commands
	$(BIN)/pytest --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

test-clusters: $(INSTALLED) ## run the tests against a real SLURM and a real Ray
	$(BIN)/pytest tests/clusters -m cluster $(if $(CLUSTER_WORKERS),--numprocesses $(CLUSTER_WORKERS) --dist loadgroup)

test-matrix: $(INSTALLED) ## compare every method on every layout, with every recompute and J, with one process
	$(BIN)/pytest tests/multiprocess -m matrix

test-megatron-next: $(INSTALLED) $(MEGATRON_NEXT)/.installed ## run tests with the Megatron-Core of Python 3.12
	PYTHONPATH=$(CURDIR)/$(MEGATRON_NEXT) $(BIN)/pytest tests/unit tests/multiprocess --numprocesses $(TEST_WORKERS) \
		--dist loadfile --no-loadscope-reorder

# Its wheel is for Python 3.12, but what is used of it runs on 3.11 too.
$(MEGATRON_NEXT)/.installed: pyproject.toml
	rm -rf $(MEGATRON_NEXT)
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --only-binary :all: \
		--python-version 3.12 --ignore-requires-python \
		--target $(MEGATRON_NEXT) \
		$$(sed -n "s/.*\"\(megatron-core==[0-9.]*\); python_version >= .*/\1/p" pyproject.toml)
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --only-binary :all: \
		--target $(MEGATRON_NEXT) 'triton>=3.7'
	@touch $@

test-gpu: $(INSTALLED) ## run the tests that need a GPU
	$(BIN)/pytest -m gpu

gpu-check: $(INSTALLED) ## check numbers, speed, memory and faults on a GPU, in eight minutes
	OMP_NUM_THREADS=$$(nproc) $(BIN)/python -m scripts.gpu_check

test-browser: $(INSTALLED) ## look at TensorBoard in a real Chromium
	$(BIN)/pytest -m browser

soak: $(INSTALLED) ## kill, fill and rename under commands for hours, and try other machines (SOAK_KILLS=200 SOAK_SEED=20)
	$(BIN)/pytest tests/end_to_end -m soak -s

docs: $(INSTALLED) ## build the site of the documentation in build/site, and check its links
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: $(INSTALLED) ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: $(INSTALLED) ## format the sources and apply the automatic fixes of the linter
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev,hf,eval,ray,fast]'
	@touch $@

$(BIN)/python:
	@for candidate in python3.11 python3.12 python3.13 python3 python; do \
		if "$$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12), (3, 13)))' 2>/dev/null; then \
			echo "creating $(VENV) with $$candidate"; \
			"$$candidate" -m venv $(VENV) && exit 0; \
			rm -rf $(VENV); \
			echo "error: $$candidate could not create a virtual environment; on Debian install its python3.X-venv" >&2; \
			exit 1; \
		fi; \
	done; \
	echo "error: Python 3.11, 3.12 or 3.13 must be installed as python3.11, python3.12, python3.13, python3 or python" >&2; \
	exit 1
