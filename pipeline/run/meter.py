"""Measurements between two log lines: sums on the device, times on the host, one collective."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from megatron_ext.device import device, most_memory_bytes
from megatron_ext.parallel.groups import ParallelGroups
from pipeline.checkpoint.state import TrainState
from pipeline.config.schema import RunConfig
from pipeline.cost.flops import FlopsAccount, TrainingFlops, weighted_mean
from pipeline.data.dataset import TokenRows
from pipeline.metrics import names
from pipeline.metrics.data_hash import gather_data_hash
from pipeline.metrics.ponder_scalars import Sums, mean_loss, ponder_scalars, share_of_thoughts_run
from pipeline.metrics.records import TrainingRecord
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step.settings import StepSettings
from pipeline.step.train import StepResult


class IntervalMeter:
    """The measurements of one logging interval."""

    def __init__(
        self,
        config: RunConfig,
        flops: FlopsAccount,
        layout: Mapping[str, int],
        *,
        peak_flops: float | None = None,
    ) -> None:
        """Start an empty interval.

        Args:
            config: the run.
            flops: cost account of the model.
            layout: names and sizes of the model's statistics.
            peak_flops: dense peak of a device, operations per second; None if it is unknown.
        """
        self.flops = flops
        self.statistics = StatisticsAccumulator(layout, device=device())
        self.penalty_weight = 0.0
        # The largest K of the interval that was read last.
        self.most_thoughts = 0
        self._config = config
        self._peak_flops = peak_flops
        self._grad_norm: float | None = None
        self._clear()

    @property
    def has_steps(self) -> bool:
        """Whether the interval has any steps."""
        return bool(self._steps)

    def add_step(self, settings: StepSettings, result: StepResult, seconds: float) -> None:
        """Add one step; the step itself has added its statistics."""
        self.penalty_weight = settings.penalty_weight
        self._grad_norm = result.grad_norm
        # Where sweeps end early, what was run counts.
        is_fixed = settings.sweep_tolerance is None
        num_sweeps = settings.num_jacobi_iterations if is_fixed else result.num_sweeps
        self._steps.append((self._thoughts_of(settings), num_sweeps))
        self._seconds += seconds

    def read(
        self,
        state: TrainState,
        *,
        learning_rates: tuple[float, float | None],
        groups: ParallelGroups,
        muon_learning_rate: float | None = None,
        rows: Sequence[TokenRows] | None = None,
        samples_by_source: Mapping[str, int] | None = None,
    ) -> TrainingRecord:
        """Return the record of the interval and start the next; all data-parallel ranks call it together.

        Args:
            state: how far the run is.
            learning_rates: of the next step: that of the backbone, and that of the method's own weights if
                they have one.
            groups: the parallel layout.
            muon_learning_rate: of the matrices of the layers, where Muon updates them.
            rows: this rank's rows of the last global batch; None if nothing was read.
            samples_by_source: of a blend, how many samples of each source the run has seen.
        """
        sums = self.statistics.reduce(groups.dp, groups.pp)
        num_steps = len(self._steps)
        sweeps = sum(sweeps for _, sweeps in self._steps) / num_steps
        training = self._config.training
        seen = {
            names.tokens_of_source(name): float(samples * training.seq_length)
            for name, samples in (samples_by_source or {}).items()
        }
        tokens_per_second = num_steps * training.global_batch_size * training.seq_length / self._seconds
        flops = self._training_flops(sums)
        tokens_per_device = tokens_per_second / groups.world_size
        record = TrainingRecord(
            iteration=state.iteration,
            total_iterations=training.train_iters,
            consumed_samples=state.consumed_samples,
            elapsed_seconds=self._seconds / num_steps,
            tokens_per_second=tokens_per_second,
            tflops_per_device=tokens_per_device * flops.model / 1e12,
            mfu=self._utilisation(tokens_per_device * flops.model),
            hfu=self._utilisation(tokens_per_device * flops.hardware),
            learning_rate=learning_rates[0],
            decoupled_learning_rate=learning_rates[1],
            muon_learning_rate=muon_learning_rate,
            global_batch_size=training.global_batch_size,
            world_size=groups.world_size,
            loss=mean_loss(sums),
            grad_norm=self._grad_norm,
            skipped_iterations=state.skipped_iterations,
            nan_iterations=state.nan_iterations,
            data_hash=None if rows is None else gather_data_hash(rows, groups.dp),
            scalars=ponder_scalars(
                sums,
                num_jacobi_iterations=sweeps,
                penalty_weight=self.penalty_weight,
                flops=self.flops,
                training_flops=flops.model,
            )
            | self._thoughts()
            | seen,
            steps_count=sums.get("steps_count"),
            memory_bytes=most_memory_bytes(),
        )
        self.most_thoughts = max(num_thoughts for num_thoughts, _ in self._steps)
        self._clear()
        return record

    def _thoughts_of(self, settings: StepSettings) -> int:
        limit = settings.limits.num_steps
        return self.flops.num_latent_thoughts if limit is None else limit

    def _training_flops(self, sums: Sums) -> TrainingFlops:
        """Return the operations per token, mean over the steps of the interval."""
        account, share = self.flops, share_of_thoughts_run(sums)
        if share is not None:
            account = replace(account, share_of_thoughts=share)
        sweeps: dict[int, list[float]] = {}
        for num_thoughts, num_sweeps in self._steps:
            sweeps.setdefault(num_thoughts, []).append(num_sweeps)
        return weighted_mean(
            [
                (
                    len(own) / len(self._steps),
                    account.limited_to(num_thoughts).training_flops(sum(own) / len(own)),
                )
                for num_thoughts, own in sweeps.items()
            ]
        )

    def _thoughts(self) -> dict[str, float]:
        """Return the mean K of the interval, where it changes in training."""
        ponder = self._config.ponder
        if ponder.random_latent_thoughts is None and ponder.thoughts_schedule is None:
            return {}
        return {names.LATENT_THOUGHTS: sum(thoughts for thoughts, _ in self._steps) / len(self._steps)}

    def _utilisation(self, flops_per_second: float) -> float | None:
        return None if self._peak_flops is None else flops_per_second / self._peak_flops

    def _clear(self) -> None:
        # K and J of every step.
        self._steps: list[tuple[int, float]] = []
        self._seconds = 0.0
