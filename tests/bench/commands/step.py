"""`python -m tests.bench step`: training steps of several checkouts."""

from pathlib import Path
from statistics import median
from typing import Annotated

import typer
from rich.table import Table

from pipeline.commands.shared import examples
from pipeline.shared.console import open_console
from tests.bench.commands.choices import refuse_unknown

EPILOG = examples(
    "python -m tests.bench step",
    "python -m tests.bench step --other ../before --case vanilla --precision bf16 --rounds 9",
)


def step(
    others: Annotated[
        list[Path] | None,
        typer.Option(
            "--other",
            metavar="FOLDER",
            help="Another checkout, which takes turns; can be repeated.",
            show_default=False,
        ),
    ] = None,
    cases: Annotated[
        list[str] | None,
        typer.Option("--case", metavar="NAME", help="Default: all.", show_default=False),
    ] = None,
    precisions: Annotated[
        list[str] | None,
        typer.Option("--precision", metavar="TYPE", help="fp32 or bf16; default: both.", show_default=False),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Timed steps; medians are shown.")] = 5,
    with_transformers: Annotated[
        bool, typer.Option("--transformers/--no-transformers", help="Also time its vanilla model.")
    ] = True,
) -> None:
    """Time training steps of this checkout, of others and of transformers, step by step in turns.

    Each runs on one thread in a process of its own, on random tokens; reads no data and leaves no files.
    """
    from tests.bench.machine import machine_name
    from tests.bench.step import CASES, HERE, StepSizes, time_cases

    chosen = cases or list(CASES)
    refuse_unknown(chosen, CASES, "--case")
    checkouts = {"this checkout": HERE} | {str(folder): folder.resolve() for folder in others or []}
    table = Table(title=f"Seconds of a training step, {machine_name()}, one thread each")
    for column in (
        "case",
        "program",
        "median",
        "range",
        "of the CPU",
        "speed of this checkout",
        "peak",
        "load",
    ):
        table.add_column(column, justify="left" if column in ("case", "program") else "right")
    measured = time_cases(
        chosen,
        precisions or ["fp32", "bf16"],
        StepSizes(),
        checkouts=checkouts,
        with_transformers=with_transformers,
        rounds=rounds,
    )
    for found in measured:
        for times in found.programs:
            table.add_row(
                f"{found.case}, {found.precision}",
                times.program,
                f"{times.median_seconds:.3f}",
                f"{min(times.timed):.3f}..{max(times.timed):.3f}",
                f"{median(times.cpu_seconds[times.num_untimed :]):.3f}",
                f"{found.ratio(times):.2f} x",
                f"{times.peak_bytes / 2**30:.2f} GiB",
                f"{found.load[0]:.0f}..{found.load[1]:.0f}",
            )
    open_console().print(table)
