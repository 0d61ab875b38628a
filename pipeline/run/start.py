"""Start a run on the ranks of this job: process group, data, model, newest checkpoint, outputs."""

import logging
from dataclasses import replace
from pathlib import Path

from megatron_ext.device import device_name, has_cuda
from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.checkpoint.identity import RunIdentity
from pipeline.checkpoint.loading import load_checkpoint
from pipeline.checkpoint.origin import origin_of_this_process
from pipeline.checkpoint.resuming import find_intact_checkpoint
from pipeline.checkpoint.save_times import SAVE_TIMES_NAME
from pipeline.checkpoint.saver import CheckpointSaver
from pipeline.checkpoint.state import TrainState, read_train_state
from pipeline.checkpoint.writing import Destination
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account
from pipeline.metrics.collapse import CollapseAlarm
from pipeline.metrics.history import record_end
from pipeline.metrics.names import PROFILE_FOLDER
from pipeline.ranks.distributed import (
    RendezvousError,
    abandon_process_group,
    start_process_group,
    stop_process_group,
)
from pipeline.ranks.environment import Ranks
from pipeline.ranks.final_error import note_final_error
from pipeline.ranks.gpu_variables import STACKS_FOLDER
from pipeline.ranks.lost_ranks import LostRanksError, naming_lost_ranks
from pipeline.ranks.signals import StopFlag
from pipeline.ranks.watchdog import Watchdog
from pipeline.run.attention import check_attention
from pipeline.run.closing import closing_lines
from pipeline.run.determinism import compute_deterministically
from pipeline.run.identity import (
    check_parameter_groups,
    identity_on_resuming,
    run_identity,
    tokenizer_content,
)
from pipeline.run.initial_weights import load_initial_weights
from pipeline.run.loop import TrainingLoop
from pipeline.run.meter import IntervalMeter
from pipeline.run.out_of_memory import answering_out_of_memory
from pipeline.run.output import (
    config_file,
    open_run_progress,
    open_sinks,
    peak_flops,
    show_summary,
    start_output,
)
from pipeline.run.profiling import StepProfiler, render_operations
from pipeline.run.source_conversion import StoppedConvertingError, converted_source
from pipeline.run.unwritable import naming_unwritable_outputs
from pipeline.shared.console import open_console, say
from pipeline.shared.errors import DataError, DiskFullError
from pipeline.shared.exit_codes import ExitCode
from pipeline.step.build import (
    TrainingParts,
    build_training,
    heldout_batches,
    open_heldout_split,
    open_training_split,
    prefetched_batches,
    vocab_size_of,
)

logger = logging.getLogger(__name__)


def train(config: RunConfig, stop: StopFlag) -> ExitCode:
    """Train on the ranks of this job; every rank calls it.

    Args:
        config: the run; its layout has as many ranks as were started.
        stop: ends the run early; already active.
    Returns:
        DONE at the last iteration, or at a planned exit; REQUEUE after a stop signal, with a checkpoint, and
        when ranks are lost or never connect; DO_NOT_REQUEUE after divergence, and when the last iteration was
        skipped.
    Raises:
        ConfigError, DataError, CheckpointError: before anything is written.
        OutOfMemoryError: a rank needs more memory than its device has.
    """
    prepare_host()
    ranks = Ranks.from_environment()
    try:
        start_process_group(
            ranks, timeout_seconds=config.parallel.timeout_seconds, device=config.parallel.device
        )
    except RendezvousError as error:
        logger.error("%s", error)
        return ExitCode.REQUEUE
    is_orderly = False
    try:
        code = _train_on_ranks(config, stop, ranks)
        is_orderly = True
        return code
    except StoppedConvertingError as error:
        logger.info("%s; the same command starts the conversion again", error)
        return ExitCode.REQUEUE
    except LostRanksError:
        # Another start, perhaps on other machines, may reach all ranks.
        logger.exception("the run ends; the same command resumes from its newest checkpoint")
        return ExitCode.REQUEUE
    except (DataError, DiskFullError) as error:
        # One rank alone may have it.
        note_final_error(error.exit_code, f"rank {ranks.rank}: {error}")
        raise
    finally:
        if is_orderly or not has_cuda():
            destroy_groups()
            stop_process_group()
        else:
            abandon_process_group()


def _train_on_ranks(config: RunConfig, stop: StopFlag, ranks: Ranks) -> ExitCode:
    """Train once the ranks are connected; see :func:`train`."""
    if config.training.deterministic:
        compute_deterministically()
    groups = initialize_groups(
        tensor=config.parallel.tensor,
        context=config.parallel.context,
        pipeline=config.parallel.pipeline,
        seed=config.seed,
    )
    watchdog = Watchdog(
        ranks,
        limit_seconds=config.parallel.watchdog_seconds,
        folder=config.output_dir / STACKS_FOLDER,
    )
    with (
        watchdog,
        naming_lost_ranks(),
        naming_unwritable_outputs(config),
        answering_out_of_memory(config, groups),
    ):
        # There is no limit on how long reading a checkpoint may take.
        with watchdog.paused("the start"):
            loop = _prepare(config, groups, stop, watchdog)
        start_iteration = loop.state.iteration
        code = loop.run()
    if groups.rank == 0:
        record_end(config.output_dir, iteration=loop.state.iteration, exit_code=code)
        if code is ExitCode.DONE:
            _say_closing(loop, start_iteration=start_iteration)
    return code


def _say_closing(loop: TrainingLoop, *, start_iteration: int) -> None:
    if loop.profiler.operations:
        open_console(stderr=True).print(render_operations(loop.profiler.operations))
    lines = closing_lines(
        loop.config, loop.state, start_iteration=start_iteration, saved_iteration=loop.saved_iteration
    )
    for line in lines:
        say(line, err=True)


def _prepare(config: RunConfig, groups: ParallelGroups, stop: StopFlag, watchdog: Watchdog) -> TrainingLoop:
    data = open_training_split(config)
    heldout = open_heldout_split(config)
    vocab_size = vocab_size_of(config, data)
    check_attention(config, vocab_size, groups)
    folder = _own_checkpoint(config)
    parts = build_training(config, vocab_size, groups, draws=folder is None)
    show_summary(config, vocab_size, parts.module, groups)
    own = run_identity(config, data, vocab_size=vocab_size)
    if groups.rank == 0:
        own = replace(own, origin=origin_of_this_process(device=device_name(), num_ranks=groups.world_size))
    state, identity = _initial_state(config, parts, groups, stop, own=own, folder=folder)
    start_output(config, groups, identity, start_iteration=state.iteration)
    if has_cuda() and groups.rank == 0:
        # NCCL's watchdog writes into this folder, but does not make it.
        (config.output_dir / STACKS_FOLDER).mkdir(exist_ok=True)
    progress = open_run_progress(config, groups, start_iteration=state.iteration)
    meter = IntervalMeter(
        config,
        flops_account(config, vocab_size, fuses=parts.module.config.fuses),
        parts.module.statistics_layout(),
        peak_flops=peak_flops(config),
    )
    return TrainingLoop(
        config=config,
        groups=groups,
        parts=parts,
        batches=prefetched_batches(config, data, groups),
        heldout=heldout_batches(config, heldout, groups, max_global_batches=config.evaluation.iters),
        meter=meter,
        sinks=open_sinks(config, groups, progress, start_iteration=state.iteration),
        progress=progress,
        alarm=CollapseAlarm(
            config.metrics.collapse_patience, trains_each_step=config.ponder.step_loss_weight > 0
        ),
        stop=stop,
        watchdog=watchdog,
        saver=_saver(config, parts, groups, identity),
        profiler=StepProfiler(config.profile, config.output_dir / PROFILE_FOLDER, rank=groups.rank),
        state=state,
        saved_iteration=state.iteration,
    )


def _own_checkpoint(config: RunConfig) -> Path | None:
    """Return the checkpoint that the run resumes from; None where it starts."""
    if not config.checkpoint.resume:
        return None
    return find_intact_checkpoint(config.checkpoint_directory, reads=config.checkpoint.verify)


def _initial_state(
    config: RunConfig,
    parts: TrainingParts,
    groups: ParallelGroups,
    stop: StopFlag,
    *,
    own: RunIdentity,
    folder: Path | None,
) -> tuple[TrainState, RunIdentity]:
    if folder is not None:
        identity = identity_on_resuming(config, own, folder, iteration=read_train_state(folder).iteration)
        check_parameter_groups(config, folder)
        state = load_checkpoint(
            folder,
            module=parts.module,
            optimizer=parts.optimizer,
            scheduler=parts.scheduler,
            groups=groups,
        )
        logger.info("resumed from iteration %d in %s", state.iteration, config.checkpoint_directory)
        return state, identity
    start, vocab_size = config.init_from, own.vocab_size
    assert vocab_size is not None, "a run knows its vocabulary"
    if start.path is not None:
        is_converted = start.format == "hf"
        converted = converted_source(config, vocab_size=vocab_size, stop=stop) if is_converted else None
        load_initial_weights(
            config,
            parts,
            groups,
            vocab_size=vocab_size,
            converted=converted,
            tokenizer=own.tokenizer,
        )
    state = TrainState(iteration=0, consumed_samples=0, is_evaluation_due=config.evaluates_at_start)
    return state, own


def _saver(
    config: RunConfig, parts: TrainingParts, groups: ParallelGroups, identity: RunIdentity
) -> CheckpointSaver:
    settings = config.checkpoint
    return CheckpointSaver(
        destination=Destination(
            directory=config.checkpoint_directory,
            config_file=config_file(config),
            keep_last=settings.keep_last,
            keep_every=settings.keep_every,
            identity=identity,
            tokenizer=tokenizer_content(config, identity) if groups.rank == 0 else None,
        ),
        module=parts.module,
        optimizer=parts.optimizer,
        scheduler=parts.scheduler,
        groups=groups,
        in_background=settings.async_save,
        timeout_seconds=config.parallel.timeout_seconds,
        times_file=config.output_dir / SAVE_TIMES_NAME,
    )
