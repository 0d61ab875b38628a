"""What the metrics cost: their share of a training step, both timed in one run on random tokens."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from megatron_ext.device import device
from megatron_ext.host import prepare_host
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.schedule.optimizer import learning_rates
from pipeline.checkpoint.state import TrainState
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account
from pipeline.metrics.records import SinkGroup
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.run.meter import IntervalMeter
from pipeline.run.output import open_sinks
from pipeline.shared.progress import SilentProgress
from pipeline.step.build import TrainingParts, build_training
from pipeline.step.settings import StepSettings
from pipeline.step.train import train_step
from tests.bench.random_batches import DEFAULT_VOCAB_SIZE, random_batches

# Where the model and its method compute sums for the curves alone.
_OF_MODEL = ("_record_losses",)
_OF_METHOD = ("_record", "_record_residual")


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsCost:
    """Median times of a run.

    Attributes:
        step_seconds: one training step, without what follows.
        statistics_seconds: the sums of one step: in the model, and adding them up.
        logging_seconds: reading one interval: collective, values of the curves, all sinks.
        interval: steps in an interval.
    """

    step_seconds: float
    statistics_seconds: float
    logging_seconds: float
    interval: int

    @property
    def metrics_seconds(self) -> float:
        """All metrics, per step."""
        return self.statistics_seconds + self.logging_seconds / self.interval

    @property
    def share(self) -> float:
        """All metrics over the step itself."""
        return self.metrics_seconds / self.step_seconds


@dataclass(slots=True)
class Stopwatch:
    """Adds up the time spent in the functions that it watches."""

    seconds: float = 0.0

    def watch(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the same function, timed."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            started = _now()
            result = function(*arguments, **options)
            self.seconds += _now() - started
            return result

        return timed

    def take(self) -> float:
        """Return what has come together, and start again."""
        taken, self.seconds = self.seconds, 0.0
        return taken


@dataclass(slots=True, kw_only=True)
class MetricsBench:
    """A model in training on random tokens, with a stopwatch on its statistics."""

    config: RunConfig
    groups: ParallelGroups
    parts: TrainingParts
    meter: IntervalMeter
    sinks: SinkGroup
    batches: list[TokenBatch]
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def run_interval(self, iteration: int) -> tuple[list[float], list[float], float]:
        """Train one logging interval and log it.

        Returns:
            seconds of each step, of its statistics, and of the logging.
        """
        steps, statistics = [], []
        for _ in range(self.config.metrics.interval):
            total = self._step()
            statistics.append(self.stopwatch.take())
            steps.append(total - statistics[-1])
        started = _now()
        state = TrainState(iteration=iteration, consumed_samples=0)
        rates = learning_rates(self.parts.optimizer)
        self.sinks.write_training(self.meter.read(state, learning_rates=rates, groups=self.groups))
        return steps, statistics, _now() - started

    def _step(self) -> float:
        ponder = self.config.ponder
        settings = StepSettings(
            num_jacobi_iterations=ponder.num_jacobi_iterations, penalty_weight=ponder.penalty_weight
        )
        started = _now()
        result = train_step(
            self.parts, self.batches, settings, groups=self.groups, statistics=self.meter.statistics
        )
        seconds = _now() - started
        self.meter.add_step(settings, result, seconds)
        return seconds


def measure_metrics(config: RunConfig, folder: Path, *, num_intervals: int) -> MetricsCost:
    """Train on random tokens on this process alone and time the metrics beside the rest of the step.

    Args:
        config: a layout of one rank; its ``metrics.interval`` is the interval. No data are read.
        folder: receives the files of the sinks.
        num_intervals: timed intervals, after one that is not timed.
    """
    prepare_host()
    start_process_group(Ranks.from_environment({}), timeout_seconds=config.parallel.timeout_seconds)
    try:
        bench = _build(config.model_copy(update={"output_dir": folder}))
        try:
            bench.run_interval(1)
            rounds = [bench.run_interval(number) for number in range(2, num_intervals + 2)]
        finally:
            bench.sinks.close()
    finally:
        destroy_groups()
        stop_process_group()
    return MetricsCost(
        step_seconds=median(seconds for steps, _, _ in rounds for seconds in steps),
        statistics_seconds=median(seconds for _, statistics, _ in rounds for seconds in statistics),
        logging_seconds=median(seconds for _, _, seconds in rounds),
        interval=config.metrics.interval,
    )


def _build(config: RunConfig) -> MetricsBench:
    vocab_size = config.model.vocab_size or DEFAULT_VOCAB_SIZE
    groups = initialize_groups(seed=config.seed)
    parts = build_training(config, vocab_size, groups)
    bench = MetricsBench(
        config=config,
        groups=groups,
        parts=parts,
        meter=IntervalMeter(config, flops_account(config, vocab_size), parts.module.statistics_layout()),
        sinks=open_sinks(config, groups, SilentProgress(), start_iteration=0),
        batches=random_batches(config, vocab_size, config.num_micro_batches),
    )
    watched: list[tuple[object, str]] = [(parts.module, name) for name in _OF_MODEL]
    watched += [(parts.module.ponder, name) for name in _OF_METHOD if hasattr(parts.module.ponder, name)]
    watched += [(bench.meter.statistics, "add")]
    for owner, name in watched:
        setattr(owner, name, bench.stopwatch.watch(getattr(owner, name)))
    return bench


def _now() -> float:
    """Read the clock when the device has done all that it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
