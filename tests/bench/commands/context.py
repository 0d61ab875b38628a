"""`python -m tests.bench context`: one long row, by layout."""

import os
from statistics import median
from typing import Annotated

import typer
from rich.table import Table

from pipeline.commands.shared import examples
from pipeline.shared.console import open_console
from pipeline.shared.progress import open_bar

EPILOG = examples(
    "python -m tests.bench context",
    "python -m tests.bench context --tokens 8192 --layers 4 --hidden-size 256 --rounds 5",
)


def context(
    tokens: Annotated[int, typer.Option(min=8, metavar="N", help="Tokens of the row of a step.")] = 4096,
    layers: Annotated[int, typer.Option(min=1, metavar="N")] = 2,
    hidden_size: Annotated[int, typer.Option(min=16, metavar="N", help="A multiple of 16.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Timed steps; medians are shown.")] = 3,
) -> None:
    """Time training steps on one long row by layout: one rank, two of the tensor or the context axis.

    All train the same PonderLM-3 (K = 1, J = 1, fp32) on the CPU, on the same random tokens, a rank on one
    thread, in turns after a comparison of the losses. Give it as many cores as ranks: two. Reads no data.
    """
    # The ranks communicate by gloo.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

    from tests.bench.context import ContextSizes, time_layouts
    from tests.bench.machine import machine_name

    if tokens % 4 or hidden_size % 16:
        raise typer.BadParameter("--tokens must be a multiple of 4 and --hidden-size of 16")
    sizes = ContextSizes(seq_length=tokens, num_layers=layers, hidden_size=hidden_size)
    with open_bar("rounds", total=rounds + 1) as bar:
        found = time_layouts(sizes, rounds=rounds, progress=bar)
    table = Table(title=f"Seconds of a training step on {tokens:,} tokens, {machine_name()}")
    for column in (
        "layout",
        "median",
        "range",
        "us per token",
        "of one rank",
        "CPU seconds of all ranks",
        "loss",
    ):
        table.add_column(column, justify="left" if column == "layout" else "right")
    for one in found.layouts:
        table.add_row(
            one.layout,
            f"{median(one.seconds):.2f}",
            f"{min(one.seconds):.2f}..{max(one.seconds):.2f}",
            f"{1e6 * median(one.seconds) / tokens:.0f}",
            f"{one.share_of(found.layouts[0]):.2f}",
            f"{median(one.cpu_seconds):.2f}",
            f"{one.loss:.6f}",
        )
    open_console().print(table, f"load of the machine: {found.load[0]:.1f} to {found.load[1]:.1f}")
