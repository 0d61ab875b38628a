"""`python -m tests.bench pipeline`: passes as virtual pipeline stages."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.shared import Overrides, examples, set_up_logging
from pipeline.shared.console import open_console
from pipeline.shared.exit_codes import ExitCode

EPILOG = examples(
    "python -m tests.bench pipeline",
    "python -m tests.bench pipeline --stages 2 --micro-batches 8 ponder.num_jacobi_iterations=3",
    "python -m tests.bench pipeline --config run.yaml --stages 4 --micro-batches 16",
)


def pipeline(
    overrides: Overrides = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            help="YAML file of a run; default: a small PonderLM-2 made for this benchmark.",
            show_default=False,
        ),
    ] = None,
    stages: Annotated[
        list[int] | None,
        typer.Option(min=2, metavar="P", help="Pipeline stages; can be repeated. Default: 2 and 4."),
    ] = None,
    micro_batches: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="M", help="Micro-batches of a step; can be repeated. Default: 4 and 8."),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="Timed rounds; medians are shown.")] = 5,
) -> None:
    """Time passes as virtual pipeline stages and with a pipeline flush between passes.

    Both run the same pipeline stages on the same random tokens, one rank per stage on this machine, in turns.
    Timed are forward, backward and the reduction of gradients. The table also shows the speedup expected from
    the order of the work alone. Reads no data.

    Exit code 1: the gradients of the two differ by more than rounding.
    """
    set_up_logging()

    import torch

    from tests.bench.machine import num_processors
    from tests.bench.pipeline import ROUNDING, load_bench_config, render_pass_times, time_passes

    stages, micro_batches = stages or [2, 4], micro_batches or [4, 8]
    unequal = [f"{number} on {size}" for size in stages for number in micro_batches if number % size]
    if unequal:
        raise typer.BadParameter(
            f"must be multiples of every --stages, but are {', '.join(unequal)}",
            param_hint="--micro-batches",
        )
    if torch.cuda.is_available() and max(stages) > num_processors():
        raise typer.BadParameter(
            f"must be at most {num_processors()}, the GPUs of this machine, but is {max(stages)}; "
            "set CUDA_VISIBLE_DEVICES= to time the CPU",
            param_hint="--stages",
        )
    # Check all settings before timing anything.
    runs = [load_bench_config(config, overrides or [], num_stages=number) for number in stages]
    times = [row for run in runs for row in time_passes(run, micro_batches, repeats=repeats)]
    open_console().print(render_pass_times(runs[0], times))
    largest = max(row.largest_difference for row in times)
    raise typer.Exit(ExitCode.DONE if largest <= ROUNDING[runs[0].training.precision] else ExitCode.CRASH)
