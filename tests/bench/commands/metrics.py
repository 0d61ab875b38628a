"""`python -m tests.bench metrics`: what statistics and logs cost."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from pipeline.commands.shared import ConfigFile, Overrides, examples, set_up_logging
from pipeline.config.load import load_config
from pipeline.shared.exit_codes import ExitCode

EPILOG = examples(
    "python -m tests.bench metrics --config pipeline/recipes/demo.yaml",
    "python -m tests.bench metrics --config run.yaml metrics.interval=10 --maximum-share 0.01",
)


def metrics(
    config: ConfigFile,
    overrides: Overrides = None,
    intervals: Annotated[
        int, typer.Option(min=1, metavar="N", help="Timed logging intervals; medians are shown.")
    ] = 3,
    maximum_share: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="SHARE", help="Exit with 1 above this share.", show_default=False),
    ] = None,
) -> None:
    """Time the statistics and logs of a run as a share of its training steps, on one rank and random tokens.

    Reads no data and leaves no files.
    """
    set_up_logging()

    from megatron_ext.device import device
    from tests.bench.metrics import measure_metrics

    layout = ("parallel.tensor=1", "parallel.data=1", "parallel.sequence_parallel=false")
    run = load_config(config, [*(overrides or []), *layout])
    with tempfile.TemporaryDirectory() as folder:
        cost = measure_metrics(run, Path(folder), num_intervals=intervals)
    table = Table(title=f"{run.name}, {device()}, logging every {cost.interval} steps")
    for column in ("what", "per step", "share of the step"):
        table.add_column(column, justify="left" if column == "what" else "right")
    rows = {
        "training step": cost.step_seconds,
        "sums over tokens": cost.statistics_seconds,
        "logging": cost.logging_seconds / cost.interval,
        "all metrics": cost.metrics_seconds,
    }
    for name, seconds in rows.items():
        table.add_row(name, f"{1e3 * seconds:.3f} ms", f"{seconds / cost.step_seconds:.2%}")
    Console().print(table)
    is_too_much = maximum_share is not None and cost.share > maximum_share
    raise typer.Exit(ExitCode.CRASH if is_too_much else ExitCode.DONE)
