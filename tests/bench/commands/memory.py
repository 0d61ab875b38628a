"""`python -m tests.bench memory`: the plan beside live tensors."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from pipeline.commands.shared import Overrides, examples, set_up_logging
from pipeline.config.load import load_config
from pipeline.shared.console import open_console
from pipeline.shared.exit_codes import ExitCode

EPILOG = examples(
    "python -m tests.bench memory",
    "python -m tests.bench memory --maximum-error 0.1",
    "python -m tests.bench memory --config pipeline/recipes/tiny_ponderlm3.yaml parallel.recompute=full",
)


def memory(
    overrides: Overrides = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="YAML file of a run; default: small runs of every method and recomputation.",
            show_default=False,
        ),
    ] = None,
    maximum_error: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="SHARE", help="Exit with 1 above this error.", show_default=False),
    ] = None,
) -> None:
    """Compare the memory that `megaponder plan` predicts with the live tensors of real training steps.

    Runs on one rank and random tokens; reads no data. Counts tensors, not what an allocator reserves.
    """
    set_up_logging()

    from tests.bench.memory import bench_configs, compare_memory

    runs = list(bench_configs())
    if config is not None or overrides:
        layout = ("parallel.tensor=1", "parallel.pipeline=1", "parallel.data=1")
        runs = [load_config(config, [*(overrides or []), *layout, "parallel.sequence_parallel=false"])]
    table = Table(title="MB of tensors: planned / measured")
    for column in ("run", "between steps", "at the peak", "error", "error of what a step adds"):
        table.add_column(column, justify="left" if column == "run" else "right")
    errors = []
    for run in runs:
        found = compare_memory(run)
        errors.append(abs(found.error))
        table.add_row(
            found.name,
            f"{found.planned_state / 1e6:.1f} / {found.measured_state / 1e6:.1f}",
            f"{found.planned_peak / 1e6:.1f} / {found.measured_peak / 1e6:.1f}",
            f"{found.error:+.1%}",
            f"{found.activation_error:+.1%}",
        )
    console = open_console()
    console.print(table)
    console.print(f"largest error {max(errors):.1%}")
    is_too_much = maximum_error is not None and max(errors) > maximum_error
    raise typer.Exit(ExitCode.CRASH if is_too_much else ExitCode.DONE)
