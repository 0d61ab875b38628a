"""The memory that a plan says against what a training step really has alive, on one rank and random tokens."""

import gc
from dataclasses import dataclass

from megatron_ext.host import device, prepare_host
from megatron_ext.parallel.groups import destroy_groups, initialize_groups
from pipeline.bench.live_memory import LiveMemory
from pipeline.bench.random_batches import DEFAULT_VOCAB_SIZE, random_batches
from pipeline.build import build_training
from pipeline.config.schema import RunConfig
from pipeline.distributed import start_process_group, stop_process_group
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.plan.rank_memory import rank_memories
from pipeline.plan.rank_sizes import rank_sizes
from pipeline.ranks import Ranks
from pipeline.run_account import max_sweeps
from pipeline.step_settings import StepSettings
from pipeline.train_step import train_step

# Optimizer state appears in the first step; the second is like all others.
NUM_STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryComparison:
    """Bytes of tensors as planned and as measured.

    Attributes:
        name: of the run.
        planned_state, measured_state: between two steps.
        planned_peak, measured_peak: at the fullest moment of a step, state included.
    """

    name: str
    planned_state: float
    measured_state: int
    planned_peak: float
    measured_peak: int

    @property
    def error(self) -> float:
        """Of the planned peak, relative to the measured one."""
        return self.planned_peak / self.measured_peak - 1

    @property
    def activation_error(self) -> float:
        """Of what a step adds to the state: planned over measured, less 1."""
        planned = self.planned_peak - self.planned_state
        return planned / (self.measured_peak - self.measured_state) - 1


def compare_memory(config: RunConfig) -> MemoryComparison:
    """Train two steps of random tokens on this process alone, and hold the plan against what was alive.

    Args:
        config: a layout of one rank. No data are read. J is the largest that may occur.
    """
    vocab_size = config.model.vocab_size or DEFAULT_VOCAB_SIZE
    state, peak = measure_memory(config, vocab_size)
    (planned,) = rank_memories(rank_sizes(config, vocab_size, has_fused_norms=device().type == "cuda"))
    return MemoryComparison(
        name=config.name,
        planned_state=planned.state.total,
        measured_state=state,
        planned_peak=planned.peak,
        measured_peak=peak,
    )


def measure_memory(config: RunConfig, vocab_size: int) -> tuple[int, int]:
    """Measure on this process alone; see :func:`measure_steps`."""
    start_process_group(Ranks.from_environment({}), timeout_seconds=config.parallel.timeout_seconds)
    try:
        return measure_steps(config, vocab_size)
    finally:
        stop_process_group()


def measure_steps(config: RunConfig, vocab_size: int) -> tuple[int, int]:
    """Train on random tokens; all ranks of a started process group call it together.

    Args:
        config: the run; its layout must have as many ranks as the group.
        vocab_size: the tokenizer's, without padding.

    Returns:
        bytes of tensors alive on this rank between two steps, and at the fullest moment of the second.
    """
    prepare_host()
    parallel = config.parallel
    groups = initialize_groups(
        tensor=parallel.tensor, pipeline=parallel.pipeline, seed=config.seed
    )
    try:
        with LiveMemory() as memory:
            parts = build_training(config, vocab_size, groups)
            batches = random_batches(config, vocab_size, config.num_micro_batches)
            statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=device())
            settings = StepSettings(
                num_jacobi_iterations=max_sweeps(config.ponder), penalty_weight=config.ponder.penalty_weight
            )
            for _ in range(NUM_STEPS):
                gc.collect()
                state = memory.live_bytes
                memory.restart()
                train_step(parts, batches, settings, groups=groups, statistics=statistics)
        return state, memory.peak_bytes
    finally:
        destroy_groups()
