"""The command line of `python -m tests.bench`."""

import pytest
from typer.testing import CliRunner

from pipeline.commands.lazy_group import CommandEntry, load_command
from tests.bench import cli
from tests.bench.cli import app

OPTIONS = {
    "attention": {"--rows", "--batch-size", "--heads", "--query-groups", "--head-size", "--precision"},
    "compare_reference": {"--python", "--case", "--precision", "--part", "--rounds", "--json", "--table"},
    "context": {"--tokens", "--layers", "--hidden-size", "--rounds"},
    "convert": {"--layers", "--hidden-size", "--vocab-size", "--dtype", "--folder", "--maximum-gib"},
    "data": {"--corpus-mb", "--workers", "--tokenizer", "--rows-per-step", "--minimum-lead", "--json"},
    "decode": {"--config", "--new-tokens", "--steps", "--seconds", "--threads", "--other", "--json"},
    "memory": {"--config", "--maximum-error"},
    "methods": {"--case", "--precision", "--rounds"},
    "metrics": {"--config", "--intervals", "--maximum-share"},
    "pipeline": {"--config", "--stages", "--micro-batches", "--repeats"},
    "savings": {"--config", "--gradient-passes", "--repeats"},
    "step": {"--other", "--case", "--precision", "--rounds", "--transformers"},
    "submit": {"--config", "--target", "--rounds", "--maximum-overhead", "--maximum-seconds"},
}


def test_every_benchmark_is_a_command() -> None:
    assert {entry.attribute for entry in cli.COMMANDS} == set(OPTIONS)


@pytest.mark.parametrize("entry", cli.COMMANDS, ids=lambda entry: entry.name)
def test_the_list_of_benchmarks_repeats_the_first_line_of_their_help(entry: CommandEntry) -> None:
    assert load_command(entry).help.splitlines()[0] == entry.help


@pytest.mark.parametrize("command", sorted(OPTIONS))
def test_help_lists_the_options(command: str) -> None:
    result = CliRunner().invoke(
        app, [command.replace("_", "-"), "--help"], env={"COLUMNS": "200", "TERM": "dumb"}
    )

    assert result.exit_code == 0
    assert {option for option in OPTIONS[command] if option not in result.output} == set()


def test_query_groups_that_do_not_divide_the_heads_are_a_usage_error() -> None:
    assert CliRunner().invoke(app, ["attention", "--heads", "4", "--query-groups", "3"]).exit_code == 2


@pytest.mark.parametrize("words", [["--case", "unheard-of"], ["--case", "vanilla", "--case", "vanilla"]])
def test_methods_must_be_known_and_at_least_two(words: list[str]) -> None:
    assert CliRunner().invoke(app, ["methods", *words]).exit_code == 2
