"""Training with Muon beside torch's own optimizers on separate matrices, and what else a step does."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.schedule.optimizer import learning_rates, muon_learning_rate
from megatron_ext.weights import whole_tensors
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step.build import TrainingParts, build_training
from pipeline.step.divergence import Finding, FindingKind
from pipeline.step.settings import StepSettings
from pipeline.step.train import StepResult, train_step
from tests.support.layouts import MODELS, ONE_PROCESS, VOCAB_SIZE
from tests.support.ponder_models import batch_of, random_tokens

BATCH = batch_of(random_tokens(4, 12))
RATE, MUON_RATE, DECAY = 3e-3, 7e-3, 0.1
MODEL_OF = {"llama": "ponderlm3, llama", "gpt_neox": "adaponderlm, neox"}


def build(groups: ParallelGroups, architecture: str = "llama", **sections: Any) -> TrainingParts:
    optimizer = {
        "name": "muon",
        "lr": RATE,
        "muon_lr": MUON_RATE,
        "weight_decay": DECAY,
        "lr_decay_style": "constant",
    }
    config = MODELS[MODEL_OF[architecture]].config(
        ONE_PROCESS, **(sections | {"optimizer": optimizer | sections.get("optimizer", {})})
    )
    return build_training(config, VOCAB_SIZE, groups)


def step(
    parts: TrainingParts, groups: ParallelGroups, *, freezes: bool = False, **further: Any
) -> StepResult:
    statistics = StatisticsAccumulator(parts.module.statistics_layout(), device=torch.device("cpu"))
    settings = StepSettings(num_jacobi_iterations=1, penalty_weight=0.3, freezes_backbone=freezes)
    return train_step(parts, [BATCH], settings, groups=groups, statistics=statistics, **further)


def separated(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by name, with every fused one as its matrices."""
    found = {}
    for name, tensor in tensors.items():
        if not name.endswith("query_key_value.weight"):
            found[name] = tensor.clone()
            continue
        # [heads * 3 * d, H] -> [heads, 3, d, H]
        for part, kind in enumerate("qkv"):
            found[f"{name}.{kind}"] = tensor.view(4, 3, 8, 32)[:, part].reshape(-1, 32).clone()
    return found


def is_matrix(name: str, weight: Tensor) -> bool:
    return ".layers." in name and weight.dim() == 2


def torchs_optimizers(weights: dict[str, nn.Parameter]) -> list[torch.optim.Optimizer]:
    matrices = [weight for name, weight in weights.items() if is_matrix(name, weight)]
    others = [weight for name, weight in weights.items() if not is_matrix(name, weight)]
    groups = [
        {"params": [weight for weight in others if weight.dim() > 1], "weight_decay": DECAY},
        {"params": [weight for weight in others if weight.dim() == 1], "weight_decay": 0.0},
    ]
    return [
        torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8, fused=True),
    ]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", list(MODEL_OF))
def test_training_equals_torchs_muon_and_adamw_on_separate_matrices_bit_for_bit(
    groups: ParallelGroups, architecture: str, precision: str
) -> None:
    parts = build(groups, architecture, training={"precision": precision})
    start = separated(whole_tensors(parts.module, lambda weight: weight))
    twin = {name: nn.Parameter(weight.float().clone()) for name, weight in start.items()}
    optimizers = torchs_optimizers(twin)
    for _ in range(3):
        step(parts, groups)
        gradients = separated(whole_tensors(parts.module, lambda weight: weight.main_grad))  # type: ignore[attr-defined]
        for name, weight in twin.items():
            weight.grad = gradients[name]
        for optimizer in optimizers:
            optimizer.step()

    found = separated(whole_tensors(parts.module, lambda weight: weight))
    assert [name for name in twin if not torch.equal(found[name], twin[name].to(found[name].dtype))] == []
    unmoved = {name for name in start if torch.equal(found[name], start[name])}
    assert not any(is_matrix(name, start[name]) for name in unmoved)


def test_muon_takes_the_matrices_of_the_layers_and_adamw_all_else(groups: ParallelGroups) -> None:
    parts = build(groups)
    muon, adamw = (part.get_parameters() for part in parts.optimizer.chained_optimizers)

    names = {id(weight): name for name, weight in parts.module.named_parameters()}
    assert len(muon) == 4 * 4
    assert all(".layers." in names[id(weight)] and weight.dim() == 2 for weight in muon)
    left = {names[id(weight)] for weight in adamw}
    assert {"embedding.word_embeddings.weight", "output_layer.weight", "final_norm.weight"} < left
    assert any(name.startswith("ponder.") for name in left)
    assert len(muon) + len(adamw) == len(names)


def test_all_rates_start_alike_and_decay_to_minima_of_their_own(groups: ParallelGroups) -> None:
    schedule = {"lr_warmup_iters": 2, "lr_warmup_init": 1e-3, "min_lr": 1e-3, "lr_decay_style": "linear"}
    parts = build(
        groups,
        optimizer=schedule | {"lr_decay_iters": 4, "muon_lr": 2 * RATE, "new_parameters_lr_mult": 3.0},
    )
    seen = []
    for _ in range(5):
        seen.append((*learning_rates(parts.optimizer), muon_learning_rate(parts.optimizer)))
        parts.scheduler.step(increment=1)

    backbone, new, matrices = zip(*seen, strict=True)
    assert backbone == pytest.approx([1e-3, 2e-3, 3e-3, 2e-3, 1e-3])
    assert new == pytest.approx([1e-3, 5e-3, 9e-3, 6e-3, 3e-3])
    assert matrices == pytest.approx([1e-3, 3.5e-3, 6e-3, 4e-3, 2e-3])


def test_the_rate_of_muon_is_that_of_adamw_unless_given(groups: ParallelGroups) -> None:
    assert muon_learning_rate(build(groups, optimizer={"muon_lr": None}).optimizer) == pytest.approx(RATE)
    assert muon_learning_rate(build(groups, optimizer={"name": "adamw", "muon_lr": None}).optimizer) is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_frozen_backbone_does_not_change(groups: ParallelGroups, precision: str) -> None:
    parts = build(groups, training={"precision": precision})
    before = {name: weight.detach().clone() for name, weight in parts.module.named_parameters()}
    for _ in range(2):
        step(parts, groups, freezes=True)

    changed = {
        name for name, weight in parts.module.named_parameters() if not torch.equal(weight, before[name])
    }
    assert changed
    assert all(name.startswith("ponder.") for name in changed)


def test_a_step_that_is_not_made_leaves_weights_and_state(groups: ParallelGroups) -> None:
    parts = build(groups)
    step(parts, groups)
    muon = parts.optimizer.chained_optimizers[0].optimizer
    before = [weight.detach().clone() for weight in parts.module.parameters()]
    momenta = [state["momentum_buffer"].clone() for state in muon.state.values()]
    finding = Finding(kind=FindingKind.SPIKE, text="too high")

    result = step(parts, groups, judge=lambda _loss, _norm: finding)

    assert not result.was_updated
    assert all(torch.equal(now, old) for now, old in zip(parts.module.parameters(), before, strict=True))
    buffers = [state["momentum_buffer"] for state in muon.state.values()]
    assert all(map(torch.equal, buffers, momenta))


def test_gradients_are_clipped_together(groups: ParallelGroups) -> None:
    free, clipped = (build(groups, optimizer={"clip_grad": limit}) for limit in (0, 0.01))
    for parts in (free, clipped):
        step(parts, groups)

    norms = []
    for parts in (free, clipped):
        gradients = [weight.main_grad for weight in parts.module.parameters()]  # type: ignore[attr-defined]
        norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
    assert norms[0] > 0.01
    assert norms[1] == pytest.approx(0.01, rel=1e-3)
