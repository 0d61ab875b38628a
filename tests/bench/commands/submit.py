"""`python -m tests.bench submit`: what submission costs."""

import shutil
from statistics import median
from typing import Annotated

import typer
from rich.table import Table

from cluster.targets import target_named
from pipeline.commands.shared import ConfigFile, Overrides, examples
from pipeline.config.load import load_config
from pipeline.config.submit_section import Target
from pipeline.shared.console import open_console
from pipeline.shared.exit_codes import ExitCode
from tests.bench.submission import Measured, measure_local, measure_submitted

EPILOG = examples(
    "python -m tests.bench submit --config run.yaml --target slurm submit.nodes=2 train-iters=200",
    "python -m tests.bench submit --config run.yaml --target ray --rounds 5 --maximum-overhead 0.03",
)


def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    target: Annotated[Target, typer.Option("--target", "-t", help="Cluster to submit to.")] = "slurm",
    rounds: Annotated[int, typer.Option(min=1, metavar="N", help="Runs of each; medians are shown.")] = 3,
    maximum_overhead: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="SHARE",
            help="Exit with 1 if steps take longer by more than this share.",
            show_default=False,
        ),
    ] = None,
    maximum_seconds: Annotated[
        float | None,
        typer.Option(
            min=0.0, metavar="S", help="Exit with 1 if submitting takes longer.", show_default=False
        ),
    ] = None,
) -> None:
    """Time the submission of a run, and its steps on a cluster and in the same run started here.

    The runs take turns and write to folders of their own inside output_dir, which are removed when all have
    succeeded. Needs as many processors here as on the cluster.
    """
    settings = [*(overrides or []), f"submit.target={target}", "metrics.interval=1"]
    run = load_config(config, settings)
    where = target_named(run.submit.target, ray_address=run.submit.ray_address)
    folder = run.output_dir.resolve() / "bench"
    here: list[Measured] = []
    there: list[Measured] = []
    for number in range(rounds):
        here.append(measure_local(config, settings, folder / f"here-{number}"))
        there.append(measure_submitted(where, config, settings, folder / f"{target}-{number}"))
    shutil.rmtree(folder)
    _print_submissions(target, here, there)
    overhead = _median_step(there) / _median_step(here) - 1
    is_too_much = maximum_overhead is not None and overhead > maximum_overhead
    is_too_slow = maximum_seconds is not None and _median_start(there) > maximum_seconds
    raise typer.Exit(ExitCode.CRASH if is_too_much or is_too_slow else ExitCode.DONE)


def _print_submissions(target: Target, here: list[Measured], there: list[Measured]) -> None:
    table = Table(title=f"{len(here)} runs of {here[0].num_steps} steps each")
    for column in ("where", "`submit` returns after", "step", "step, ratio"):
        table.add_column(column, justify="left" if column == "where" else "right")
    own = _median_step(here)
    table.add_row("started here", "-", f"{1e3 * own:.1f} ms", "1.000")
    step = _median_step(there)
    table.add_row(target, f"{_median_start(there):.2f} s", f"{1e3 * step:.1f} ms", f"{step / own:.3f}")
    open_console().print(table)


def _median_step(runs: list[Measured]) -> float:
    return median(run.step_seconds for run in runs)


def _median_start(runs: list[Measured]) -> float:
    return median(run.submit_seconds for run in runs)
