"""`megaponder train`."""

from typing import Annotated

import typer

from pipeline.commands.ranks import run_on_layout
from pipeline.commands.shared import ConfigFile, Overrides, examples, set_up_logging, speaks
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.metrics.leaving_time import stop_timeout_seconds
from pipeline.ranks.environment import Ranks
from pipeline.ranks.run_lock import run_lock
from pipeline.run.unwritable import naming_unwritable_outputs
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.streams import keep_log_in

# In the folder of the run, if whoever read the log has left (`megaponder train 2>&1 | head`).
LOG_NAME = "stderr.log"

EPILOG = examples(
    "megaponder train --config pipeline/recipes/tiny_ponderlm3.yaml data.path=runs/data",
    "megaponder train --config run.yaml parallel.tensor=2 train-iters=500 lr=1e-3",
    "megaponder train --config run.yaml parallel.pipeline=4 --show-schedule",
    "megaponder train --config run.yaml checkpoint.interval=500 --max-restarts 3",
    "torchrun --nproc-per-node 8 -m pipeline.cli train --config run.yaml parallel.data=8",
)


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check settings, data, tokenizer, vocabulary and the checkpoint to resume from; print the "
            "settings that differ from the defaults, and the planned memory; start nothing.",
        ),
    ] = False,
    show_all: Annotated[bool, typer.Option("--all", help="With --dry-run, print every setting.")] = False,
    show_schedule: Annotated[
        bool,
        typer.Option(
            "--show-schedule",
            help="Show what each pipeline stage does in a step, and how long it waits; start nothing.",
        ),
    ] = False,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts",
            min=0,
            metavar="N",
            help="Restart all ranks from the newest checkpoint, up to N times, when one dies or hangs; "
            "not under a launcher such as torchrun.",
        ),
    ] = 0,
) -> None:
    """Train a model, or resume from its newest checkpoint.

    Starts the ranks of the layout (tensor x pipeline x data) on this machine, unless a launcher such as
    torchrun has started them.

    One command trains into a folder at a time: another one is refused.

    On Ctrl-C, SIGTERM and SIGUSR1 the run finishes its current step, saves a checkpoint and ends with exit
    code 75; the same command resumes from it. A second Ctrl-C ends it at once, without saving.
    """
    settings = overrides or []
    run = load_config(config, settings)
    if dry_run:
        from pipeline.commands.dry_run import dry_run as check_all

        set_up_logging()
        check_all(run, shows_all=show_all)
        raise typer.Exit(ExitCode.DONE)
    if show_schedule:
        _show_schedule(run)
        raise typer.Exit(ExitCode.DONE)
    _check_inputs(run)
    keep_log_in(run.output_dir / LOG_NAME)
    set_up_logging(speaks=speaks())
    with (
        naming_unwritable_outputs(run),
        run_lock(run.output_dir, run.checkpoint_directory, work="megaponder train"),
    ):
        code = run_on_layout(
            run,
            ["train", "--config", str(config), *settings],
            run_here=lambda: _train(run),
            max_restarts=max_restarts,
            stop_timeout_seconds=lambda: stop_timeout_seconds(run.output_dir),
        )
    raise typer.Exit(code)


def _check_inputs(run: RunConfig) -> None:
    """Check what the run reads before torch is imported; ranks that were launched check it together."""
    if not Ranks.from_environment().is_launched:
        from pipeline.run.inputs import check_inputs

        check_inputs(run)


def _train(run: RunConfig) -> int:
    from pipeline.ranks.acknowledgement import Acknowledgement
    from pipeline.ranks.signals import StopFlag

    minutes = run.training.exit_duration_in_mins
    # Before the imports, which take seconds: a signal during the start must not kill the rank.
    with (
        StopFlag(limit_seconds=None if minutes is None else 60 * minutes) as stop,
        Acknowledgement("stopping after this step, then saving", speaks=speaks()),
    ):
        from pipeline.run.start import train as train_run

        return train_run(run, stop)


def _show_schedule(run: RunConfig) -> None:
    set_up_logging()

    from pipeline.cost.schedule_chart import show_schedule as show

    show(run)
