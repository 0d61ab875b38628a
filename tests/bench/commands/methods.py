"""`python -m tests.bench methods`: training steps of several methods."""

from typing import Annotated

import typer
from rich.table import Table

from pipeline.commands.shared import examples, set_up_logging
from pipeline.shared.console import open_console
from tests.bench.commands.choices import refuse_unknown

EPILOG = examples(
    "python -m tests.bench methods",
    'python -m tests.bench methods --case vanilla --case "ponderlm2 K1 J3" --precision fp32 --rounds 5',
)


def methods(
    cases: Annotated[
        list[str] | None,
        typer.Option(
            "--case",
            metavar="NAME",
            help="At least two, compared with the first; default: PonderLM-2 and PonderLM-3, K1 J3.",
            show_default=False,
        ),
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option("--precision", metavar="TYPE", help="fp32 or bf16; default: both.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Timed steps; medians are shown.")] = 3,
) -> None:
    """Time training steps of several methods, in turns in one process on one thread.

    The model is that of `step`. Runs on random tokens; reads no data and leaves no files.
    """
    set_up_logging()

    from tests.bench.machine import machine_name
    from tests.bench.methods import time_methods
    from tests.bench.step import CASES, StepSizes

    chosen = cases or ["ponderlm2 K1 J3", "ponderlm3 K1 J3"]
    refuse_unknown(chosen, CASES, "--case")
    if len(set(chosen)) < 2:
        raise typer.BadParameter("must name at least two cases", param_hint="--case")
    table = Table(title=f"Seconds of a training step, {machine_name()}, one thread")
    for column in ("case", "median", "range", f"time relative to {chosen[0]}", "range of the rounds"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for precision in precisions or ["fp32", "bf16"]:
        for found in time_methods(chosen, precision, StepSizes(), rounds=rounds):
            table.add_row(
                f"{found.case}, {precision}",
                f"{found.median_seconds:.3f}",
                f"{min(found.seconds):.3f}..{max(found.seconds):.3f}",
                f"{found.median_relative:.3f}",
                f"{min(found.relative):.3f}..{max(found.relative):.3f}",
            )
    open_console().print(table)
