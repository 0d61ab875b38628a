"""The training loop: decides when to step, log, evaluate, save and stop; how is left to other modules."""

import logging
import time
from dataclasses import dataclass, field, replace
from functools import partial

from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.schedule.optimizer import learning_rates, muon_learning_rate
from pipeline.checkpoint.saver import CheckpointSaver
from pipeline.checkpoint.state import TrainState, with_best_loss
from pipeline.config.schema import RunConfig
from pipeline.data.batches import HeldoutBatches
from pipeline.data.dataset import TokenRows
from pipeline.data.prefetch import PrefetchedBatches
from pipeline.evaluation.points import LimitSettings, points_under_limits
from pipeline.metrics.collapse import CollapseAlarm
from pipeline.metrics.data_hash import gather_data_hash
from pipeline.metrics.ponder_scalars import ponder_scalars, tail_masses
from pipeline.metrics.records import LossPoint, SinkGroup, ValidationRecord
from pipeline.ranks.signals import StopFlag, StopRequest
from pipeline.ranks.watchdog import Watchdog
from pipeline.run.meter import IntervalMeter
from pipeline.run.output import render_state
from pipeline.run.profiling import StepProfiler
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.progress import Progress
from pipeline.step.build import TrainingParts
from pipeline.step.divergence import (
    Finding,
    FindingKind,
    describe_bad_step,
    judge,
    losses_to_remember,
    report_bad_step,
)
from pipeline.step.evaluate import Evaluation, evaluate
from pipeline.step.settings import share_of_thoughts, step_settings
from pipeline.step.train import StepResult, train_step

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class TrainingLoop:
    """The loop of a run that has been prepared.

    Attributes:
        config: the run.
        groups: the parallel layout.
        parts: model, optimizer, schedule.
        batches, heldout: this rank's data.
        meter: measurements since the last log line.
        sinks, progress, alarm: where measurements go.
        stop: stop signals and time limits.
        watchdog: ends the run if it hangs.
        saver: writes checkpoints.
        profiler: records some iterations.
        state: progress of the run, as it is saved.
        saved_iteration: of the newest checkpoint, or where this process started.
        is_save_due: whether a checkpoint must be written as soon as possible.
        saved_at: when the newest checkpoint was written, or this loop was made, by the monotonic clock.
        rows: this rank's rows of the newest global batch, for its hash.
    """

    config: RunConfig
    groups: ParallelGroups
    parts: TrainingParts
    batches: PrefetchedBatches
    heldout: HeldoutBatches
    meter: IntervalMeter
    sinks: SinkGroup
    progress: Progress
    alarm: CollapseAlarm
    stop: StopFlag
    watchdog: Watchdog
    saver: CheckpointSaver
    profiler: StepProfiler
    state: TrainState
    saved_iteration: int
    is_save_due: bool = False
    saved_at: float = field(default_factory=time.monotonic)
    rows: list[TokenRows] = field(default_factory=list)

    def run(self) -> ExitCode:
        """Train until the last iteration, a request to stop, or divergence."""
        try:
            code = self._iterate()
            with self.watchdog.paused("waiting for the last save"):
                self.saver.finish()
            return code
        except BaseException:
            with self.watchdog.paused("letting a save in the background end"):
                self.saver.leave()
            raise
        finally:
            self._end_profile()
            self.batches.close()
            self.progress.close()
            self.sinks.close()

    def _iterate(self) -> ExitCode:
        last = self.config.training.train_iters
        if self.state.is_evaluation_due and self._evaluate() and self.state.iteration == last:
            self._save()
        while self.state.iteration < last or self.state.is_evaluation_due:
            started = time.monotonic()
            self.watchdog.beat(f"reading the data of iteration {self.state.iteration + 1}")
            request = self.stop.agreed(
                until=partial(self.batches.is_ready, self.state.consumed_samples),
                notice=self._is_save_overdue(),
            )
            # Clocks differ: all ranks save after this step if it is time for one of them.
            self.is_save_due |= self.stop.noticed
            if request is not StopRequest.NONE:
                return self._leave(request)
            self.profiler.start_step(self.state.iteration + 1)
            result = self._step(started)
            if self.profiler.is_recording:
                self._record_profile()
            self.saver.poll()
            if result.finding is not None and not self._continues_after(result, result.finding):
                return ExitCode.DO_NOT_REQUEUE
            iteration = self.state.iteration
            exits = iteration < last and _divides(self.config.training.exit_interval, iteration)
            self.is_save_due |= exits or _is_due(iteration, self.config.checkpoint.interval, last)
            if self.is_save_due or _is_due(iteration, self.config.metrics.interval, last):
                self._log()
            if _is_due(iteration, self.config.evaluation.interval, last):
                self._evaluate()
            if self.is_save_due:
                self._save()
            if exits:
                logger.info("exiting at iteration %d (training.exit_interval)", iteration)
                return ExitCode.DONE
        return ExitCode.DONE if self.saved_iteration == self.state.iteration else ExitCode.DO_NOT_REQUEUE

    def _leave(self, request: StopRequest) -> ExitCode:
        """Save what has not been saved, and return whether to start the run again."""
        iteration = self.state.iteration
        if iteration > self.saved_iteration:
            if self.meter.has_steps:
                self._log()
            self._save()
        with self.watchdog.paused("waiting for the last save"):
            self.saver.finish()
        is_signal = request is StopRequest.SIGNAL
        why = "stop signal received" if is_signal else "training.exit_duration_in_mins has passed"
        what = f"checkpoint of iteration {self.saved_iteration} saved; the same command resumes from it"
        if self.saved_iteration == 0:
            what = "nothing to save yet; the same command starts from iteration 0"
        logger.info("%s at iteration %d: %s", why, iteration, what)
        return ExitCode.REQUEUE if is_signal else ExitCode.DONE

    def _step(self, started: float) -> StepResult:
        """Train one iteration.

        Args:
            started: when the wait for its data began, by the monotonic clock.
        """
        settings = step_settings(
            self.config, iteration=self.state.iteration, consumed_tokens=self.state.consumed_tokens
        )
        share = self.batches.read(self.state.consumed_samples)
        self.rows = share.rows
        self.watchdog.beat(f"iteration {self.state.iteration + 1}")
        result = train_step(
            self.parts,
            share.micro_batches,
            settings,
            groups=self.groups,
            statistics=self.meter.statistics,
            judge=lambda loss, norm: judge(loss, norm, self.state.recent_losses, self.config.divergence),
            progress=partial(self.watchdog.beat, f"a micro-batch of iteration {self.state.iteration + 1}"),
        )
        self.watchdog.beat(f"between iterations {self.state.iteration + 1} and {self.state.iteration + 2}")
        seconds = time.monotonic() - started
        self.meter.add_step(settings, result, seconds)
        self.state = self._state_after(result, seconds)
        return result

    def _record_profile(self) -> None:
        with self.watchdog.paused("writing the profile"):
            self.profiler.end_step(self.state.iteration)

    def _end_profile(self) -> None:
        if self.profiler.is_recording:
            with self.watchdog.paused("writing the profile"):
                self.profiler.close()

    def _state_after(self, result: StepResult, seconds: float) -> TrainState:
        state, training = self.state, self.config.training
        is_nan = result.finding is not None and result.finding.kind is FindingKind.NONFINITE
        losses = state.recent_losses
        if result.was_updated:
            losses = losses_to_remember(losses, result.loss, self.config.divergence)
        return replace(
            state,
            iteration=state.iteration + 1,
            consumed_samples=state.consumed_samples + training.global_batch_size,
            consumed_tokens=state.consumed_tokens + training.global_batch_size * training.seq_length,
            skipped_iterations=state.skipped_iterations + (not result.was_updated),
            nan_iterations=state.nan_iterations + is_nan,
            skipped_in_a_row=0 if result.was_updated else state.skipped_in_a_row + 1,
            recent_losses=losses,
            training_seconds=state.training_seconds + seconds,
        )

    def _continues_after(self, result: StepResult, finding: Finding) -> bool:
        """Report a step whose update was skipped, and return whether training continues."""
        step = describe_bad_step(
            finding,
            iteration=self.state.iteration,
            loss=result.loss,
            grad_norm=result.grad_norm,
            has_finite_loss=result.has_finite_loss,
            has_finite_gradients=result.has_finite_gradients,
            data_hash=gather_data_hash(self.rows, self.groups.dp),
            num_in_a_row=self.state.skipped_in_a_row,
            last_checkpoint=self.saved_iteration or None,
            groups=self.groups,
        )
        settings = self.config.divergence
        continues = finding.is_skipped(settings) and step.num_in_a_row < settings.max_in_a_row
        if self.groups.rank == 0:
            report_bad_step(step, continues=continues, folder=self.config.output_dir)
        return continues

    def _log(self) -> None:
        """Write the measurements of the interval."""
        record = self.meter.read(
            self.state,
            learning_rates=learning_rates(self.parts.optimizer),
            muon_learning_rate=muon_learning_rate(self.parts.optimizer),
            groups=self.groups,
            rows=self.rows,
            samples_by_source=self.batches.order.samples_by_source(self.state.consumed_samples),
        )
        self.sinks.write_training(record)
        self.progress.update(record.iteration, render_state(record))
        if record.steps_count is not None:
            # Steps that no forward of the interval had are no collapse.
            num_slots = self.meter.most_thoughts + 1
            warning = self.alarm.observe(
                record.steps_count[:num_slots],
                penalty_weight=self.meter.penalty_weight,
                tail_mass=tail_masses(record.scalars)[:num_slots],
            )
            if warning is not None:
                logger.warning("%s", warning.advice)

    def _evaluate(self) -> bool:
        """Measure the held-out loss.

        In a blended start the model is read as the next training step reads it; such a loss is none of the
        finished model, so it does not count as the best one.

        A stop signal cuts the evaluation short; it stays due, and the resumed run makes it.

        Returns:
            Whether it was measured.
        """
        sweeps = self.config.ponder.num_jacobi_iterations
        evaluation = evaluate(
            self.parts.module,
            self.heldout,
            num_jacobi_iterations=sweeps,
            pondering_share=self._pondering_share,
            measures_steps=True,
            groups=self.groups,
            is_cut_short=self._is_evaluation_cut_short,
        )
        points = None if evaluation is None else self._points_under_limits(evaluation)
        self.state = replace(self.state, is_evaluation_due=points is None)
        if evaluation is None or points is None:
            return False
        if self._pondering_share == 1:
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
                sweep=points,
            )
        )
        return True

    def _points_under_limits(self, evaluation: Evaluation) -> tuple[LossPoint, ...] | None:
        """Measure the same under limits, as far as the configuration asks for it."""
        settings = LimitSettings(
            over_steps=self.config.evaluation.sweep_steps,
            taus=self.config.evaluation.sweep_tau,
            num_jacobi_iterations=self.config.ponder.num_jacobi_iterations,
            pondering_share=self._pondering_share,
        )
        return points_under_limits(
            self.parts.module,
            self.heldout,
            settings,
            groups=self.groups,
            flops=self.meter.flops,
            unlimited=evaluation,
            is_cut_short=self._is_evaluation_cut_short,
        )

    @property
    def _pondering_share(self) -> float:
        return share_of_thoughts(self.config, self.state.iteration)

    def _is_evaluation_cut_short(self) -> bool:
        self.watchdog.beat(f"evaluation at iteration {self.state.iteration}")
        return self.stop.agreed() is StopRequest.SIGNAL

    def _save(self) -> None:
        """Write a checkpoint; it stays due if the last step was skipped.

        After a skipped step nothing shows that the weights are sound: the update before may have broken them.
        """
        if self.state.skipped_in_a_row:
            logger.warning("not saving at iteration %d, which was skipped", self.state.iteration)
            return
        self.is_save_due = False
        seen = self.batches.order.samples_by_source(self.state.consumed_samples)
        with self.watchdog.paused(f"saving iteration {self.state.iteration}"):
            self.saver.save(replace(self.state, samples_by_source=dict(seen)))
        self.saved_iteration = self.state.iteration
        self.saved_at = time.monotonic()

    def _is_save_overdue(self) -> bool:
        minutes = self.config.checkpoint.minutes
        return minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes


def _is_due(iteration: int, interval: int | None, last: int) -> bool:
    """Tell whether something is due that happens every `interval` iterations, and at the last one."""
    return iteration == last or _divides(interval, iteration)


def _divides(interval: int | None, iteration: int) -> bool:
    return interval is not None and iteration % interval == 0
