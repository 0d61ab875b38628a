"""The router and the gates learn at a rate of their own, and nothing else changes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method
from megatron_ext.schedule.optimizer import learning_rates
from pipeline.config.load import load_config
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step.build import TrainingParts, build_training
from pipeline.step.settings import StepSettings
from pipeline.step.train import train_step
from tests.support.ponder_models import batch_of, random_tokens

BATCH = batch_of(random_tokens(4, 12))
RATE = 3e-3
# Without decay, a step moves every weight by the rate times a number that does not depend on the rate.
SETTINGS = [
    *(f"optimizer.lr={RATE}", "optimizer.weight_decay=0", "optimizer.clip_grad=0"),
    *("ponder.num_latent_thoughts=2", "model.hidden_size=32"),
]


def build(repository: Path, groups: ParallelGroups, method: Method, *changes: str) -> TrainingParts:
    prepare_host()
    recipe = repository / "pipeline" / "recipes" / f"tiny_{method}.yaml"
    return build_training(load_config(recipe, [*SETTINGS, *changes]), 43, groups)


def moves(parts: TrainingParts, groups: ParallelGroups, *, num_steps: int = 1) -> dict[str, Tensor]:
    """Return how far each weight goes in some steps."""
    before = {name: weight.detach().clone() for name, weight in parts.module.named_parameters()}
    statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=torch.device("cpu"))
    settings = StepSettings(num_jacobi_iterations=1, penalty_weight=0.3)
    for _ in range(num_steps):
        train_step(parts, [BATCH], settings, groups=groups, statistics=statistics)
    return {name: weight.detach() - before[name] for name, weight in parts.module.named_parameters()}


@pytest.mark.parametrize("is_distributed", ["true", "false"])
@pytest.mark.parametrize("method", [method for method in Method if method.halts])
def test_new_weights_move_a_multiple_as_far_and_the_backbone_stays_bit_equal(
    repository: Path, groups: ParallelGroups, method: Method, is_distributed: str
) -> None:
    changes = ["optimizer.lr_warmup_iters=0", f"parallel.use_distributed_optimizer={is_distributed}"]
    usual = build(repository, groups, method, *changes)
    faster = build(repository, groups, method, *changes, "optimizer.new_parameters_lr_mult=4")

    assert learning_rates(usual.optimizer) == (RATE, None)
    assert learning_rates(faster.optimizer) == (RATE, 4 * RATE)
    expected, found = moves(usual, groups), moves(faster, groups)

    new = {name for name in expected if name.startswith("ponder.")}
    assert new
    for name, move in expected.items():
        if name in new:
            # The moves are differences of rounded weights.
            torch.testing.assert_close(found[name], 4 * move, rtol=1e-3, atol=1e-6)
        else:
            assert torch.equal(found[name], move), name
    assert any(move.any() for name, move in expected.items() if name in new)


def test_both_rates_are_warmed_up_from_the_same_start_and_decay_to_minima_of_their_own(
    repository: Path, groups: ParallelGroups
) -> None:
    parts = build(
        repository,
        groups,
        Method.PONDERLM3,
        *("optimizer.lr_warmup_iters=2", f"optimizer.lr_warmup_init={RATE / 3}", "optimizer.min_lr=1e-3"),
        *("optimizer.lr_decay_style=linear", "optimizer.lr_decay_iters=6"),
        "optimizer.new_parameters_lr_mult=2",
    )
    seen = []
    for _ in range(7):
        seen.append(learning_rates(parts.optimizer))
        parts.scheduler.step(increment=1)

    backbone, new = zip(*seen, strict=True)
    assert backbone == pytest.approx([1e-3, 2e-3, 3e-3, 2.5e-3, 2e-3, 1.5e-3, 1e-3])
    assert new == pytest.approx([1e-3, 3.5e-3, 6e-3, 5e-3, 4e-3, 3e-3, 2e-3])


def test_a_frozen_backbone_does_not_change_while_new_weights_move_at_their_own_rate(
    repository: Path, groups: ParallelGroups
) -> None:
    parts = build(
        repository,
        groups,
        Method.PONDERLM3,
        *("optimizer.lr_warmup_iters=0", "optimizer.new_parameters_lr_mult=2"),
    )
    parts.freeze.set(True)
    before = {name: weight.detach().clone() for name, weight in parts.module.named_parameters()}
    statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=torch.device("cpu"))
    settings = StepSettings(num_jacobi_iterations=1, penalty_weight=0.3, freezes_backbone=True)
    train_step(parts, [BATCH], settings, groups=groups, statistics=statistics)

    went = {name: (weight.detach() - before[name]) for name, weight in parts.module.named_parameters()}
    changed = {name: float(move.abs().max()) for name, move in went.items() if move.any()}
    # The first layer learns nothing while the last one's weight is 0.
    assert set(changed) == {"ponder.router.2.weight", "ponder.router.2.bias"}
    assert max(changed.values()) == pytest.approx(2 * RATE, rel=1e-3)
