"""Time and memory of training steps whose gradients flow through the last passes alone, in one process."""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from megatron_ext.device import device
from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import destroy_groups, initialize_groups
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account, max_sweeps
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.step.build import build_training
from pipeline.step.settings import StepSettings
from pipeline.step.train import train_step
from tests.bench.live_memory import LiveMemory
from tests.bench.random_batches import DEFAULT_VOCAB_SIZE, random_batches
from tests.bench.timing import median_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """A training step with so many passes that have gradients.

    Attributes:
        gradient_passes: None: all.
        seconds: median.
        activation_bytes: what the step adds to the tensors that live between steps, at its peak.
        flops: per token, by the account.
    """

    gradient_passes: int | None
    seconds: float
    activation_bytes: int
    flops: float


def measure_savings(
    config: RunConfig, gradient_passes: Sequence[int | None], *, repeats: int
) -> list[StepCost]:
    """Train the same model on the same random tokens with each number of passes in turns.

    Args:
        config: a run on one rank; its data are not read. J is the largest that can occur.
        gradient_passes: to compare.
        repeats: timed rounds.
    """
    start_process_group(Ranks.from_environment({}), timeout_seconds=config.parallel.timeout_seconds)
    prepare_host()
    groups = initialize_groups(seed=config.seed)
    try:
        vocab_size = config.model.vocab_size or DEFAULT_VOCAB_SIZE
        parts = build_training(config, vocab_size, groups)
        batches = random_batches(config, vocab_size, config.num_micro_batches)
        statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=device())
        num_sweeps = max_sweeps(config.ponder)

        def step(number: int | None) -> None:
            settings = StepSettings(
                num_jacobi_iterations=num_sweeps,
                penalty_weight=config.ponder.penalty_weight,
                gradient_passes=number,
            )
            train_step(parts, batches, settings, groups=groups, statistics=statistics)

        ways = {str(number): partial(step, number) for number in gradient_passes}
        seconds = median_seconds(ways, repeats=repeats, device=device())
        account = flops_account(config, vocab_size)
        return [
            StepCost(
                gradient_passes=number,
                seconds=seconds[str(number)],
                activation_bytes=_peak_of(ways[str(number)]),
                flops=replace(account, gradient_passes=number).training_flops(num_sweeps).model,
            )
            for number in gradient_passes
        ]
    finally:
        destroy_groups()
        stop_process_group()


def _peak_of(step: partial[None]) -> int:
    """Return the peak of tensors that a step creates; those from before are not counted."""
    gc.collect()
    with LiveMemory() as memory:
        step()
    peak: int = memory.peak_bytes
    return peak


def small_run(method: str) -> RunConfig:
    """Return a GPT-NeoX of six layers with K = 3 and J = 2."""
    return build_config(
        {
            "name": f"{method}_k3_j2",
            "model": {
                "architecture": "gpt_neox",
                "num_layers": 6,
                "hidden_size": 512,
                "ffn_hidden_size": 2048,
                "num_attention_heads": 8,
                "vocab_size": 4096,
            },
            "ponder": {"method": method, "num_latent_thoughts": 3, "num_jacobi_iterations": 2},
            "training": {"seq_length": 256, "micro_batch_size": 1, "global_batch_size": 1, "train_iters": 1},
            "optimizer": {"lr": 1e-3},
            "data": {"path": "not-read"},
        }
    )
