"""Time of training steps of several methods, in turns in one process, so that all use the same memory."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from megatron_ext.device import device
from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.step.build import build_training
from pipeline.step.settings import StepSettings
from pipeline.step.train import train_step
from tests.bench.random_batches import random_batches
from tests.bench.step import StepSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodTimes:
    """Times of one method.

    Attributes:
        case: its name.
        seconds: of each timed step.
        relative: the same, over those of the first method in the same round.
    """

    case: str
    seconds: Sequence[float]
    relative: Sequence[float]

    @property
    def median_seconds(self) -> float:
        """Median of the timed steps."""
        return median(self.seconds)

    @property
    def median_relative(self) -> float:
        """Median of the rounds."""
        return median(self.relative)


def time_methods(cases: Sequence[str], precision: str, sizes: StepSizes, *, rounds: int) -> list[MethodTimes]:
    """Time the steps of some cases on one thread; each goes first in every second round.

    Args:
        cases: names of :data:`tests.bench.step.CASES`; the others are compared with the first.
        precision: of the weights.
        sizes: of model and step.
        rounds: timed rounds, at least 1; one more comes before them.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start_process_group(Ranks.from_environment({}), timeout_seconds=600)
    prepare_host()
    groups = initialize_groups(seed=1)
    try:
        steps = {case: _step(build_config(sizes.settings(case, precision)), sizes, groups) for case in cases}
        taken = _take_turns(steps, rounds)
    finally:
        destroy_groups()
        stop_process_group()
        torch.set_num_threads(threads)
    first = taken[cases[0]]
    return [
        MethodTimes(
            case=case,
            seconds=seconds,
            relative=[own / other for own, other in zip(seconds, first, strict=True)],
        )
        for case, seconds in taken.items()
    ]


def _step(config: RunConfig, sizes: StepSizes, groups: ParallelGroups) -> Callable[[], object]:
    parts = build_training(config, sizes.vocab_size, groups)
    batches = random_batches(config, sizes.vocab_size, config.num_micro_batches)
    statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=device())
    settings = StepSettings(
        num_jacobi_iterations=config.ponder.num_jacobi_iterations, penalty_weight=config.ponder.penalty_weight
    )
    return lambda: train_step(parts, batches, settings, groups=groups, statistics=statistics)


def _take_turns(steps: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {case: [] for case in steps}
    order = list(steps)
    for turn in range(rounds + 1):
        for case in order if turn % 2 == 0 else reversed(order):
            started = time.perf_counter()
            steps[case]()
            if turn > 0:
                seconds[case].append(time.perf_counter() - started)
    return seconds
