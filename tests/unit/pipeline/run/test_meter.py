"""The record of an interval tells the sweeps that ran, and their cost."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from megatron_ext.schedule.optimizer import learning_rates
from pipeline.checkpoint.state import TrainState
from pipeline.config.load import build_config
from pipeline.cost.account import flops_account
from pipeline.cost.flops import FlopsAccount
from pipeline.metrics import names
from pipeline.metrics.records import TrainingRecord
from pipeline.ranks.distributed import start_process_group, stop_process_group
from pipeline.ranks.environment import Ranks
from pipeline.run.meter import IntervalMeter
from pipeline.step.build import build_training
from pipeline.step.settings import StepSettings, step_settings
from pipeline.step.train import StepResult, train_step
from tests.bench.random_batches import random_batches
from tests.unit.pipeline.config.settings import changed_settings

VOCAB_SIZE = 40
# Above every residual, and below.
ALWAYS, NEVER = 1e6, 1e-30


@pytest.fixture(scope="module")
def groups() -> Iterator[ParallelGroups]:
    """A layout of one rank."""
    start_process_group(Ranks.from_environment({}), timeout_seconds=60)
    prepare_host()
    try:
        yield initialize_groups()
    finally:
        destroy_groups()
        stop_process_group()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeteredStep:
    """A training step of a tiny model, and the record of the interval that it makes."""

    account: FlopsAccount
    settings: StepSettings
    result: StepResult
    record: TrainingRecord


def metered_step(ponder: dict[str, Any], groups: ParallelGroups) -> MeteredStep:
    config = build_config(
        changed_settings(
            model={"architecture": "llama", "num_layers": 1, "hidden_size": 16, "ffn_hidden_size": 16}
            | {"num_attention_heads": 2, "vocab_size": VOCAB_SIZE},
            ponder=ponder,
            training__seq_length=8,
        )
    )
    parts = build_training(config, VOCAB_SIZE, groups)
    account = flops_account(config, VOCAB_SIZE)
    meter = IntervalMeter(config, account, parts.module.statistics_layout())
    settings = step_settings(config, iteration=0, consumed_tokens=0)
    batches = random_batches(config, VOCAB_SIZE, config.num_micro_batches)

    result = train_step(parts, batches, settings, groups=groups, statistics=meter.statistics)
    meter.add_step(settings, result, seconds=1.0)
    record = meter.read(
        TrainState(iteration=1, consumed_samples=8),
        learning_rates=learning_rates(parts.optimizer),
        groups=groups,
    )
    return MeteredStep(account=account, settings=settings, result=result, record=record)


def test_rows_that_were_left_out_are_not_counted(groups: ParallelGroups) -> None:
    ponder = {
        "method": "ponderlm3",
        "num_latent_thoughts": 2,
        "skip_pruned_rows": True,
        # At the start w_1 is 0.95 for every token, and w_2 is 0.9.
        "pruning_threshold": 0.92,
    }
    step = metered_step(ponder, groups)

    plan = step.account.plan(step.settings.num_jacobi_iterations)
    thoughts = sum(slots - 1 for slots in plan.slots)
    share = (plan.num_passes - 1) / thoughts
    assert step.record.scalars[names.THOUGHT_ROWS] == pytest.approx(share)
    cost = replace(step.account, share_of_thoughts=share).training_flops(step.settings.num_jacobi_iterations)
    assert step.record.scalars[names.FLOPS_PER_TOKEN_TRAIN] == pytest.approx(cost.model)


@pytest.mark.parametrize(
    ("tolerance", "gradient_passes", "num_sweeps"),
    [(None, "all", 4), (NEVER, "all", 4), (ALWAYS, "all", 1), (ALWAYS, 3, 3)],
)
def test_sweeps_that_were_left_out_are_not_counted(
    groups: ParallelGroups, tolerance: float | None, gradient_passes: int | str, num_sweeps: int
) -> None:
    ponder = {
        "method": "ponderlm2",
        "num_latent_thoughts": 1,
        "num_jacobi_iterations": 4,
        "gradient_passes": gradient_passes,
        "sweep_tolerance": tolerance,
    }
    step = metered_step(ponder, groups)

    assert step.result.num_sweeps == num_sweeps
    assert step.record.scalars[names.JACOBI_ITERATIONS] == num_sweeps
    cost = step.account.training_flops(num_sweeps).model
    assert step.record.scalars[names.FLOPS_PER_TOKEN_TRAIN] == pytest.approx(cost)
