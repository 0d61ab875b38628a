"""Planned memory compared with the live tensors of training steps on random tokens."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, get_args

from megatron_ext.device import device
from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import destroy_groups, initialize_groups
from megatron_ext.ponder.config import Method
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.cost.account import max_sweeps
from pipeline.cost.flops import Recompute
from pipeline.cost.memory import rank_memories
from pipeline.cost.rank_sizes import rank_sizes
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.step.build import build_training
from pipeline.step.settings import StepSettings, share_of_thoughts, step_settings
from pipeline.step.train import train_step
from tests.bench.live_memory import LiveMemory
from tests.bench.random_batches import DEFAULT_VOCAB_SIZE, random_batches

# The first step creates the optimizer state; the second is like all others.
NUM_STEPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryComparison:
    """Bytes of tensors as planned and as measured.

    Attributes:
        name: of the run.
        planned_state, measured_state: between two steps.
        planned_peak, measured_peak: maximum within a step, state included.
    """

    name: str
    planned_state: float
    measured_state: int
    planned_peak: float
    measured_peak: int

    @property
    def error(self) -> float:
        """Relative error of the planned peak."""
        return self.planned_peak / self.measured_peak - 1

    @property
    def activation_error(self) -> float:
        """Relative error of what a step adds to the state."""
        planned = self.planned_peak - self.planned_state
        return planned / (self.measured_peak - self.measured_state) - 1


def bench_configs() -> Iterator[RunConfig]:
    """Yield small runs of every method with every kind of recomputation, alternating the two backbones."""
    for (row, method), (column, recompute) in product(enumerate(Method), enumerate(get_args(Recompute))):
        # Each kind meets both.
        architecture = ("gpt_neox", "llama")[(row + column) % 2]
        yield build_config(_settings(method, architecture, recompute))


def _settings(method: Method, architecture: str, recompute: str) -> dict[str, Any]:
    ponder = {"method": method.value}
    return {
        "name": f"{method}_{architecture}_{recompute}",
        "model": {
            "architecture": architecture,
            "num_layers": 6,
            "hidden_size": 256,
            "ffn_hidden_size": 1024,
            "num_attention_heads": 4,
            "vocab_size": 2000,
        },
        "ponder": ponder if method is Method.VANILLA else ponder | {"num_latent_thoughts": 2},
        "parallel": {"recompute": recompute},
        "training": {
            "seq_length": 128,
            "micro_batch_size": 4,
            "global_batch_size": 4,
            "train_iters": NUM_STEPS,
            "precision": "bf16",
        },
        "optimizer": {"lr": 1e-3},
        "data": {"path": "not-read"},
    }


def compare_memory(config: RunConfig) -> MemoryComparison:
    """Train two steps of random tokens in this process and compare live tensors with the plan.

    Args:
        config: a run on one rank; its data are not read. J is the largest that can occur.
    """
    vocab_size = config.model.vocab_size or DEFAULT_VOCAB_SIZE
    state, peak = measure_memory(config, vocab_size)
    sizes = rank_sizes(config, vocab_size, has_fused_norms=device().type == "cuda")
    # Every row of random tokens is one document.
    (planned,) = rank_memories(replace(sizes, separates_documents=False))
    return MemoryComparison(
        name=config.name,
        planned_state=planned.between_steps,
        measured_state=state,
        planned_peak=planned.peak,
        measured_peak=peak,
    )


def measure_memory(config: RunConfig, vocab_size: int) -> tuple[int, int]:
    """Measure in this process; see :func:`measure_steps`."""
    start_process_group(Ranks.from_environment({}), timeout_seconds=config.parallel.timeout_seconds)
    try:
        return measure_steps(config, vocab_size)
    finally:
        stop_process_group()


def measure_steps(config: RunConfig, vocab_size: int) -> tuple[int, int]:
    """Train on random tokens; all ranks of a started process group call it together.

    Args:
        config: the run; its layout must have as many ranks as the group.
        vocab_size: of the tokenizer, without padding.

    Returns:
        bytes of live tensors on this rank between two steps, and their maximum within the second.
    """
    prepare_host()
    parallel = config.parallel
    groups = initialize_groups(
        tensor=parallel.tensor, context=parallel.context, pipeline=parallel.pipeline, seed=config.seed
    )
    try:
        with LiveMemory() as memory:
            parts = build_training(config, vocab_size, groups)
            batches = random_batches(config, vocab_size, config.num_micro_batches)
            statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=device())
            settings = StepSettings(
                num_jacobi_iterations=max_sweeps(config.ponder),
                penalty_weight=config.ponder.penalty_weight,
                pondering_share=share_of_thoughts(config, 0),
                gradient_passes=step_settings(config, iteration=0, consumed_tokens=0).gradient_passes,
            )
            for _ in range(NUM_STEPS):
                gc.collect()
                state = memory.live_bytes
                memory.restart()
                train_step(parts, batches, settings, groups=groups, statistics=statistics)
        return state, memory.peak_bytes
    finally:
        destroy_groups()
