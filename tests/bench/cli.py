"""`python -m tests.bench`: all benchmarks as commands."""

import typer

from pipeline.commands.lazy_group import CommandEntry, LazyGroup


def _command(name: str, help_line: str) -> CommandEntry:
    attribute = name.replace("-", "_")
    return CommandEntry(
        name=name, module=f"tests.bench.commands.{attribute}", attribute=attribute, help=help_line
    )


COMMANDS = (
    _command("attention", "Time attention with weighted keys, forward and backward."),
    _command(
        "compare-reference",
        "Time training steps, decoding and the reading of prompts beside the published code of PonderLM-2.",
    ),
    _command(
        "context",
        "Time training steps on one long row by layout: one rank, two of the tensor or the context axis.",
    ),
    _command(
        "convert",
        "Convert a Pythia-shaped model with random weights there and back, and measure time and peak memory.",
    ),
    _command(
        "data", "Time the preparation and the reading of data, and alternatives to both, on the same files."
    ),
    _command(
        "decode",
        "Time cached decoding of a PonderLM-3 by the steps its tokens take, on one rank and random tokens.",
    ),
    _command(
        "memory",
        "Compare the memory that `megaponder plan` predicts with the live tensors of real training steps.",
    ),
    _command(
        "savings",
        "Time training steps whose gradients flow through all passes and through the last ones, in turns.",
    ),
    _command("methods", "Time training steps of several methods, in turns in one process on one thread."),
    _command(
        "metrics",
        "Time the statistics and logs of a run as a share of its training steps, on one rank and random "
        "tokens.",
    ),
    _command("pipeline", "Time passes as virtual pipeline stages and with a pipeline flush between passes."),
    _command(
        "step", "Time training steps of this checkout, of others and of transformers, step by step in turns."
    ),
    _command(
        "submit", "Time the submission of a run, and its steps on a cluster and in the same run started here."
    ),
)
"""All commands, in the order of the help; their modules are imported when they are called."""


class _Commands(LazyGroup):
    """The commands of `python -m tests.bench`."""

    entries = COMMANDS


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    help="Measure this program and a baseline in one run, and print their ratio.",
)


@app.callback()
def _program() -> None:
    """Make a group of the program, whose commands are in the table."""
