"""The training loop: decides when to step, log, evaluate, save and stop. How is decided elsewhere."""

import logging
import math
import time
from dataclasses import dataclass, field, replace

import torch

from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.build import (
    TrainingParts,
    build_training,
    heldout_batches,
    open_heldout_split,
    open_training_split,
    training_batches,
    vocab_size_of,
)
from pipeline.checkpoint.loading import load_checkpoint
from pipeline.checkpoint.resuming import find_whole_checkpoint
from pipeline.checkpoint.saver import CheckpointSaver
from pipeline.checkpoint.state import TrainState, with_best_loss
from pipeline.checkpoint.writing import Destination
from pipeline.config.schema import RunConfig
from pipeline.data.batches import HeldoutBatches, TrainingBatches
from pipeline.data.dataset import TokenRows
from pipeline.distributed import start_process_group, stop_process_group
from pipeline.evaluate import evaluate
from pipeline.exit_codes import ExitCode
from pipeline.initial_weights import start_from_weights
from pipeline.interval import IntervalMeter
from pipeline.metrics.collapse import CollapseAlarm
from pipeline.metrics.ponder_scalars import ponder_scalars
from pipeline.metrics.records import ValidationRecord
from pipeline.metrics.sinks import SinkGroup
from pipeline.progress import TrainingProgress
from pipeline.ranks import Ranks
from pipeline.roll_call import naming_lost_ranks
from pipeline.run_account import flops_account
from pipeline.run_output import config_file, open_run_progress, open_sinks, show_summary, start_output
from pipeline.signals import StopFlag
from pipeline.step_settings import step_settings
from pipeline.train_step import train_step

logger = logging.getLogger(__name__)


def train(config: RunConfig) -> ExitCode:
    """Train on the ranks that are there; every rank calls it.

    Args:
        config: the run; its layout has as many ranks as were started.
    Returns:
        DONE at the last iteration; REQUEUE after a signal, with a checkpoint; DO_NOT_REQUEUE after
        divergence.
    Raises:
        ConfigError, DataError, CheckpointError: before anything was written.
    """
    prepare_host()
    start_process_group(Ranks.from_environment(), timeout_seconds=config.parallel.timeout_seconds)
    try:
        groups = initialize_groups(
            tensor=config.parallel.tensor, pipeline=config.parallel.pipeline, seed=config.seed
        )
        # On the host: asking must not wait for the GPU.
        with StopFlag(torch.device("cpu")) as stop, naming_lost_ranks():
            return _prepare(config, groups).run(stop)
    finally:
        destroy_groups()
        stop_process_group()


def _prepare(config: RunConfig, groups: ParallelGroups) -> "TrainingRun":
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
        batches=training_batches(config, data, groups),
        heldout=heldout_batches(config, heldout, groups, max_global_batches=config.evaluation.iters),
        meter=meter,
        sinks=open_sinks(config, groups, progress, start_iteration=state.iteration),
        progress=progress,
        alarm=CollapseAlarm(config.metrics.collapse_patience),
        saver=_saver(config, parts, groups),
        state=state,
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
    )


@dataclass(kw_only=True)
class TrainingRun:
    """A run under way.

    Attributes:
        config: the run.
        groups: the layout.
        parts: model, optimizer, schedule.
        batches, heldout: this rank's data.
        meter: what was measured since the last log line.
        sinks, progress, alarm: where it goes.
        saver: saves it.
        state: how far the run is.
        rows: what this rank has read of the newest step's global batch.
    """

    config: RunConfig
    groups: ParallelGroups
    parts: TrainingParts
    batches: TrainingBatches
    heldout: HeldoutBatches
    meter: IntervalMeter
    sinks: SinkGroup
    progress: TrainingProgress
    alarm: CollapseAlarm
    saver: CheckpointSaver
    state: TrainState
    rows: list[TokenRows] = field(default_factory=list)

    def run(self, stop: StopFlag) -> ExitCode:
        """Iterate until the last iteration, a signal, or divergence."""
        try:
            code = self._iterate(stop)
            self.saver.finish()
            return code
        except BaseException:
            self.saver.leave()
            raise
        finally:
            self.progress.close()
            self.sinks.close()

    def _iterate(self, stop: StopFlag) -> ExitCode:
        last = self.config.training.train_iters
        while self.state.iteration < last:
            self._step()
            self.saver.poll()
            iteration = self.state.iteration
            is_stopping = stop.is_set_on_any_rank() and iteration < last
            saves = is_stopping or _is_due(iteration, self.config.checkpoint.interval, last)
            # Before every save too: what is not finite must not become the newest checkpoint.
            logs = saves or _is_due(iteration, self.config.metrics.interval, last)
            if logs and not self._log():
                return ExitCode.DO_NOT_REQUEUE
            if _is_due(iteration, self.config.evaluation.interval, last) and not is_stopping:
                self._evaluate()
            if saves:
                self._save()
            if is_stopping:
                self.saver.finish()
                logger.info("told to stop at iteration %d; saved, the same command goes on", iteration)
                return ExitCode.REQUEUE
        return ExitCode.DONE

    def _step(self) -> None:
        settings = step_settings(
            self.config, iteration=self.state.iteration, consumed_tokens=self.state.consumed_tokens
        )
        started = time.monotonic()
        share = self.batches.read(self.state.consumed_samples)
        self.rows = share.rows
        result = train_step(
            self.parts,
            share.micro_batches,
            settings,
            groups=self.groups,
            statistics=self.meter.statistics,
        )
        seconds = time.monotonic() - started
        self.meter.add_step(settings, result, seconds)
        training = self.config.training
        self.state = replace(
            self.state,
            iteration=self.state.iteration + 1,
            consumed_samples=self.state.consumed_samples + training.global_batch_size,
            consumed_tokens=self.state.consumed_tokens + training.global_batch_size * training.seq_length,
            skipped_iterations=self.state.skipped_iterations + (not result.was_updated),
            training_seconds=self.state.training_seconds + seconds,
        )

    def _log(self) -> bool:
        """Write the interval; False where loss or gradients have left the finite numbers."""
        record = self.meter.read(
            self.state,
            learning_rate=self.parts.optimizer.param_groups[0]["lr"],
            groups=self.groups,
            rows=self.rows,
            samples_by_source=self.batches.order.samples_by_source(self.state.consumed_samples),
        )
        self.sinks.write_training(record)
        self.progress.update(record.iteration, loss=record.loss, tokens_per_second=record.tokens_per_second)
        if record.steps_count is not None:
            warning = self.alarm.observe(record.steps_count, penalty_weight=self.meter.penalty_weight)
            if warning is not None:
                logger.warning("%s", warning)
        if math.isfinite(record.loss) and math.isfinite(record.grad_norm or 0.0):
            return True
        # All ranks find the same; one tells it.
        tell = logger.error if self.groups.rank == 0 else logger.debug
        tell(
            "loss and gradient norm must be finite, but are %s and %s at iteration %d; nothing is saved: "
            "lower optimizer.lr or ponder.penalty_weight and start again from the last checkpoint",
            record.loss,
            record.grad_norm,
            record.iteration,
        )
        return False

    def _evaluate(self) -> None:
        sweeps = self.config.ponder.num_jacobi_iterations
        evaluation = evaluate(
            self.parts.module, self.heldout, num_jacobi_iterations=sweeps, groups=self.groups
        )
        self.state = with_best_loss(self.state, evaluation.loss)
        scalars = ponder_scalars(
            evaluation.sums,
            num_jacobi_iterations=sweeps,
            penalty_weight=self.meter.penalty_weight,
            flops=self.meter.flops,
        )
        self.sinks.write_validation(
            ValidationRecord(
                iteration=self.state.iteration,
                consumed_samples=self.state.consumed_samples,
                loss=evaluation.loss,
                scalars=scalars,
                steps_count=evaluation.sums.get("steps_count"),
            )
        )

    def _save(self) -> None:
        seen = self.batches.order.samples_by_source(self.state.consumed_samples)
        self.saver.save(replace(self.state, samples_by_source=dict(seen)))


def _is_due(iteration: int, interval: int | None, last: int) -> bool:
    """Every `interval` iterations, and at the last one."""
    return iteration == last or (interval is not None and iteration % interval == 0)
