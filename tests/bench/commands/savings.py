"""`python -m tests.bench savings`: gradients through some of the passes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.commands.shared import Overrides, examples, set_up_logging
from pipeline.config.load import load_config
from pipeline.shared.console import open_console

EPILOG = examples(
    "python -m tests.bench savings",
    "python -m tests.bench savings --config run.yaml --gradient-passes 1 --gradient-passes 3",
)


def savings(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="YAML file of a run; default: PonderLM-2 of six layers, K = 3, J = 2.",
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    gradient_passes: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="Passes with gradients; default: 2 and 1.", show_default=False),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed rounds; medians are shown.")] = 3,
) -> None:
    """Time training steps whose gradients flow through all passes and through the last ones, in turns.

    Runs on one rank and random tokens; reads no data. Memory counts tensors, not what an allocator reserves.
    """
    set_up_logging()

    from tests.bench.savings import measure_savings, small_run

    layout = ("parallel.tensor=1", "parallel.pipeline=1", "parallel.data=1")
    given = [*(overrides or []), *layout, "parallel.sequence_parallel=false"]
    run = load_config(config, given) if config is not None or overrides else small_run("ponderlm2")
    numbers = gradient_passes or [2, 1]
    found = measure_savings(run, [None, *numbers], repeats=repeats)
    table = Table(title=f"training steps of {run.name}, and shares of the full method")
    for column in ("passes with gradients", "seconds", "MB a step adds", "GFLOP per token"):
        table.add_column(column, justify="right")
    full = found[0]
    for one in found:
        table.add_row(
            "all" if one.gradient_passes is None else str(one.gradient_passes),
            f"{one.seconds:.2f} ({one.seconds / full.seconds:.2f})",
            f"{one.activation_bytes / 1e6:.0f} ({one.activation_bytes / full.activation_bytes:.2f})",
            f"{one.flops / 1e9:.3f} ({one.flops / full.flops:.2f})",
        )
    open_console().print(table)
