"""Start a run on the ranks that are there: process group, data, model, newest checkpoint, outputs."""

import logging

from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.build import (
    TrainingParts,
    build_training,
    heldout_batches,
    open_heldout_split,
    open_training_split,
    prefetched_batches,
    vocab_size_of,
)
from pipeline.checkpoint.loading import load_checkpoint
from pipeline.checkpoint.resuming import find_whole_checkpoint
from pipeline.checkpoint.save_times import SAVE_TIMES_NAME
from pipeline.checkpoint.saver import CheckpointSaver
from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.writing import Destination
from pipeline.config.schema import RunConfig
from pipeline.distributed import RendezvousError, start_process_group, stop_process_group
from pipeline.exit_codes import ExitCode
from pipeline.initial_weights import start_from_weights
from pipeline.interval import IntervalMeter
from pipeline.metrics.collapse import CollapseAlarm
from pipeline.ranks import Ranks
from pipeline.roll_call import LostRanksError, naming_lost_ranks
from pipeline.run_account import flops_account
from pipeline.run_output import config_file, open_run_progress, open_sinks, show_summary, start_output
from pipeline.signals import StopFlag
from pipeline.training_run import TrainingRun
from pipeline.watchdog import Watchdog

logger = logging.getLogger(__name__)

# Of the run's folder: what every rank was doing when the run hung.
STACKS_FOLDER = "stacks"


def train(config: RunConfig, stop: StopFlag) -> ExitCode:
    """Train on the ranks that are there; every rank calls it.

    Args:
        config: the run; its layout has as many ranks as were started.
        stop: what ends the run early; already listening.
    Returns:
        DONE at the last iteration, or where the configuration asks to leave; REQUEUE after a signal, with a
        checkpoint, and where ranks are lost or never met; DO_NOT_REQUEUE after divergence, and where the last
        iteration was left out.
    Raises:
        ConfigError, DataError, CheckpointError: before anything was written.
    """
    prepare_host()
    ranks = Ranks.from_environment()
    try:
        start_process_group(ranks, timeout_seconds=config.parallel.timeout_seconds)
    except RendezvousError as error:
        logger.error("%s", error)
        return ExitCode.REQUEUE
    try:
        groups = initialize_groups(
            tensor=config.parallel.tensor, pipeline=config.parallel.pipeline, seed=config.seed
        )
        watchdog = Watchdog(
            ranks,
            limit_seconds=config.parallel.watchdog_seconds,
            folder=config.output_dir / STACKS_FOLDER,
        )
        with watchdog, naming_lost_ranks():
            # Nobody knows how long a checkpoint takes to be read.
            with watchdog.paused("the start"):
                run = _prepare(config, groups, stop, watchdog)
            return run.run()
    except LostRanksError:
        # Another start, perhaps elsewhere, may find all ranks.
        logger.exception("the run ends; the same command goes on from its newest checkpoint")
        return ExitCode.REQUEUE
    finally:
        destroy_groups()
        stop_process_group()


def _prepare(config: RunConfig, groups: ParallelGroups, stop: StopFlag, watchdog: Watchdog) -> TrainingRun:
    data = open_training_split(config)
    heldout = open_heldout_split(config)
    vocab_size = vocab_size_of(config, data)
    parts = build_training(config, vocab_size, groups)
    show_summary(config, vocab_size, parts.module, groups)
    state = _initial_state(config, parts, groups, vocab_size=vocab_size)
    start_output(config, groups)
    progress = open_run_progress(config, groups, start_iteration=state.iteration)
    meter = IntervalMeter(config, flops_account(config, vocab_size), parts.module.statistics_layout())
    return TrainingRun(
        config=config,
        groups=groups,
        parts=parts,
        batches=prefetched_batches(config, data, groups),
        heldout=heldout_batches(config, heldout, groups, max_global_batches=config.evaluation.iters),
        meter=meter,
        sinks=open_sinks(config, groups, progress, start_iteration=state.iteration),
        progress=progress,
        alarm=CollapseAlarm(config.metrics.collapse_patience),
        stop=stop,
        watchdog=watchdog,
        saver=_saver(config, parts, groups),
        state=state,
        saved_iteration=state.iteration,
    )


def _initial_state(
    config: RunConfig, parts: TrainingParts, groups: ParallelGroups, *, vocab_size: int
) -> TrainState:
    directory = config.checkpoint_directory
    folder = None
    if config.checkpoint.resume:
        folder = find_whole_checkpoint(directory, reads=config.checkpoint.verify)
    if folder is not None:
        state = load_checkpoint(
            folder,
            module=parts.module,
            optimizer=parts.optimizer,
            scheduler=parts.scheduler,
            groups=groups,
        )
        logger.info("resumed from iteration %d in %s", state.iteration, directory)
        return state
    if config.init_from.path is not None:
        start_from_weights(config, parts, vocab_size=vocab_size)
    return TrainState(iteration=0, consumed_samples=0)


def _saver(config: RunConfig, parts: TrainingParts, groups: ParallelGroups) -> CheckpointSaver:
    settings = config.checkpoint
    return CheckpointSaver(
        destination=Destination(
            directory=config.checkpoint_directory,
            config_file=config_file(config),
            keep_last=settings.keep_last,
            keep_every=settings.keep_every,
        ),
        module=parts.module,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        groups=groups,
        in_background=settings.async_save,
        timeout_seconds=config.parallel.timeout_seconds,
        times_file=config.output_dir / SAVE_TIMES_NAME,
    )
