"""Training router or gates alone: the backbone stays bit-equal, and trains again afterwards."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.host import prepare_host
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method
from megatron_ext.schedule.freezing import BackboneFreeze
from pipeline.config.load import load_config
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step.build import TrainingParts, build_training
from pipeline.step.settings import StepSettings
from pipeline.step.train import train_step
from tests.support.ponder_models import RECOMPUTE, batch_of, gradients_of, random_tokens, tiny_model

VOCAB_SIZE = 43
BATCH = batch_of(random_tokens(4, 12))
each_halting_method = pytest.mark.parametrize("method", [method for method in Method if method.halts])


def build(
    repository: Path, groups: ParallelGroups, method: Method, precision: str, *changes: str
) -> TrainingParts:
    prepare_host()
    overrides = (
        f"training.precision={precision}",
        "optimizer.lr_warmup_iters=0",
        "ponder.num_latent_thoughts=2",
        "model.hidden_size=32",
        *changes,
    )
    recipe = repository / "pipeline" / "recipes" / f"tiny_{method}.yaml"
    parts = build_training(load_config(recipe, overrides), VOCAB_SIZE, groups)
    with torch.no_grad():
        # At their start, gates and router are the same for all tokens.
        for parameter in parts.module.ponder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    parts.optimizer.reload_model_params()
    return parts


def train(parts: TrainingParts, groups: ParallelGroups, *, freezes_backbone: bool) -> None:
    settings = StepSettings(num_jacobi_iterations=1, penalty_weight=0.3, freezes_backbone=freezes_backbone)
    statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=torch.device("cpu"))
    for _ in range(3):
        result = train_step(parts, [BATCH], settings, groups=groups, statistics=statistics)
        assert result.was_updated


def weights_of(parts: TrainingParts) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in parts.module.named_parameters()}


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@each_halting_method
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_backbone_stays_bit_equal_and_trains_afterwards(
    repository: Path, groups: ParallelGroups, method: Method, precision: str
) -> None:
    parts = build(repository, groups, method, precision)
    start = weights_of(parts)

    train(parts, groups, freezes_backbone=True)
    frozen = weights_of(parts)
    train(parts, groups, freezes_backbone=False)

    own = {name for name in start if name.startswith("ponder.")}
    assert own
    assert moved(start, frozen) == own
    # A single bias of a gate may move by less than bfloat16 shows.
    assert moved(frozen, weights_of(parts)) >= set(start) - own
    # Decay is back where Megatron wants it: on matrices.
    assert {group["weight_decay"] for group in parts.optimizer.param_groups} == {0.0, 0.1}


@each_halting_method
def test_freezing_leaves_no_momentum(repository: Path, groups: ParallelGroups, method: Method) -> None:
    parts = build(repository, groups, method, "fp32", "parallel.use_distributed_optimizer=false")

    train(parts, groups, freezes_backbone=True)

    optimizer = parts.optimizer.optimizer
    for name, parameter in parts.module.named_parameters():
        has_moved = bool(optimizer.state[parameter]["exp_avg"].any())
        assert has_moved == name.startswith("ponder."), name


@each_halting_method
@pytest.mark.parametrize("kind", [None, *RECOMPUTE])
def test_a_frozen_backbone_does_not_change_what_router_and_gates_learn(
    groups: ParallelGroups, method: Method, kind: str | None
) -> None:
    model = tiny_model(groups, method, **({} if kind is None else RECOMPUTE[kind]))
    expected = gradients_of(model, BATCH)
    freeze = BackboneFreeze(model, _OptimizerWithoutGroups())

    freeze.set(True)
    found = gradients_of(model, BATCH)
    freeze.set(False)

    assert found.keys() == {name for name in expected if name.startswith("ponder.")}
    for name, gradient in found.items():
        assert (gradient - expected[name]).abs().max() <= 1e-12 * expected[name].abs().max(), name
    assert gradients_of(model, BATCH).keys() == expected.keys()


class _OptimizerWithoutGroups:
    param_groups: tuple[dict[str, Any], ...] = ()
