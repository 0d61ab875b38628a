"""Gradients through the last passes alone, and sweeps that end early, against plain twins."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.model.attention import RowContext
from megatron_ext.model.config import Architecture
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.ponder.config import Mixture, Penalty, RouterForm
from megatron_ext.ponder.masks import PADDING_DOCUMENT, document_segments, scale_segments
from megatron_ext.ponder.reference.training import TrainingForward
from megatron_ext.ponder.residual import residual
from megatron_ext.ponder.slots import rows_of_pass, split_slots
from megatron_ext.weights import whole_tensors
from tests.support.ponder_models import (
    AUTHORS,
    RECOMPUTE,
    batch_of,
    gradients_of,
    halting_tokens,
    observed,
    oracle_backbone,
    random_tokens,
    tiny_model,
)

WEIGHT = 0.3
PACKED = batch_of(random_tokens(2, 6), torch.tensor([[0, 0, 0, 1, 1, 1], [2, 2, 2, 2, 2, PADDING_DOCUMENT]]))
FORMS: dict[str, dict[str, Any]] = {
    "ours": {},
    "bottom k": {"penalty": Penalty.BOTTOM_K},
    "mixture": {"mixture": Mixture.SOFTMAX},
    "damping": {"form": RouterForm(router_damping=0.3)},
    "pre-pass": {"form": RouterForm(pre_pass=True)},
    "authors": AUTHORS,
}


@pytest.mark.parametrize(
    ("name", "architecture", "gradient_passes"),
    [
        *(("ours", "llama", number) for number in (1, 2, 4, 5)),
        *((name, "llama", 2) for name in FORMS if name != "ours"),
        ("damping", "gpt_neox", 3),
        ("mixture", "gpt_neox", 1),
    ],
)
def test_gradients_of_the_last_passes_are_those_row_by_row(
    groups: ParallelGroups, name: str, architecture: str, gradient_passes: int
) -> None:
    model = tiny_model(groups, "ponderlm3", architecture, ponder=FORMS[name])
    batch = batch_of(halting_tokens(6))
    labels = batch.labels[0].tolist()
    backbone = oracle_backbone(model)
    for weight in backbone.weights.values():
        weight.requires_grad_()
    expected = TrainingForward(backbone, model.config.ponder).run(
        batch.tokens[0].tolist(),
        [None if label == IGNORED_LABEL else label for label in labels],
        num_sweeps=2,
        gradient_passes=gradient_passes,
    )
    has_label = batch.labels[0] != IGNORED_LABEL
    logits = torch.stack(expected.logits)[has_label]
    loss = torch.nn.functional.cross_entropy(logits, batch.labels[0, has_label]) + WEIGHT * expected.penalty
    loss.backward()

    found = gradients_of(model, batch, penalty_weight=WEIGHT, gradient_passes=gradient_passes)

    by_parameter = {parameter: found[name] for name, parameter in model.named_parameters()}
    for key, gradient in whole_tensors(model, by_parameter.__getitem__).items():
        wanted = backbone.weights[key].grad
        assert wanted is not None, key
        difference = (gradient - wanted).abs().max()
        assert difference <= 1e-9 * max(float(wanted.abs().max()), 1e-3), key


def twin_loss(model: PonderModel, batch: TokenBatch, *, num_sweeps: int, gradient_passes: int) -> Tensor:
    """PonderLM-2 whose first passes are run beforehand: their thoughts come in as plain numbers."""
    plan = model.ponder.plan(num_sweeps)
    first = plan.num_passes - gradient_passes
    with torch.no_grad():
        _, seen = observed(model, batch, num_jacobi_iterations=num_sweeps)
    thoughts = seen[f"thoughts/after_pass_{first - 1:02d}"].clone()
    segments = document_segments(batch.document_ids)
    for index in range(first, plan.num_passes):
        num_slots = plan.slots[index]
        hidden = model.run_layers(
            rows_of_pass(model.embed(batch.tokens), thoughts),
            batch.position_ids,
            num_slots=num_slots,
            context=RowContext(segments=scale_segments(segments, num_slots)),
        )
        slots = split_slots(model.final_norm(hidden), num_slots)
        thoughts = slots[:, : plan.slots[min(index + 1, plan.num_passes - 1)] - 1]
        if model.ponder.mixes_embeddings:
            thoughts = model.mix_embeddings(thoughts.flatten(0, 1)).unflatten(0, (-1, thoughts.shape[1]))
            thoughts = thoughts * model.ponder.embedding_scale
    logits = model.logits(slots[:, -1]).transpose(0, 1)
    return torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED_LABEL
    )


@pytest.mark.parametrize("architecture", Architecture)
@pytest.mark.parametrize(
    ("gradient_passes", "mixture"),
    [(1, Mixture.HIDDEN), (2, Mixture.HIDDEN), (4, Mixture.HIDDEN), (2, Mixture.SOFTMAX)],
)
def test_gradients_are_those_of_passes_that_start_from_constant_thoughts(
    groups: ParallelGroups, architecture: Architecture, gradient_passes: int, mixture: Mixture
) -> None:
    model = tiny_model(groups, "ponderlm2", architecture, ponder={"mixture": mixture})
    loss = twin_loss(model, PACKED, num_sweeps=2, gradient_passes=gradient_passes)
    loss.backward()
    wanted = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)

    found = gradients_of(model, PACKED, gradient_passes=gradient_passes)

    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient is not None
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", RECOMPUTE)
@pytest.mark.parametrize(("method", "ponder"), [("ponderlm2", {}), ("ponderlm3", {}), ("ponderlm3", AUTHORS)])
def test_recompute_changes_no_gradient(
    groups: ParallelGroups, method: str, ponder: dict[str, Any], kind: str
) -> None:
    plain = tiny_model(groups, method, ponder=ponder)
    recomputing = tiny_model(groups, method, ponder=ponder, **RECOMPUTE[kind])

    for gradient_passes in (2, 4):
        wanted = gradients_of(plain, PACKED, gradient_passes=gradient_passes)
        found = gradients_of(recomputing, PACKED, gradient_passes=gradient_passes)

        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert (found[name] - gradient).abs().max() <= 1e-12 * gradient.abs().max(), name


@pytest.mark.parametrize("method", ["ponderlm2", "ponderlm3"])
def test_counting_all_passes_is_the_full_method(groups: ParallelGroups, method: str) -> None:
    model = tiny_model(groups, method)
    full = gradients_of(model, PACKED)

    counted = gradients_of(model, PACKED, gradient_passes=5)

    assert all(torch.equal(counted[name], gradient) for name, gradient in full.items())


def kept_bytes(model: PonderModel, **settings: Any) -> int:
    """What autograd keeps for backward, each storage once, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        output = model(PACKED, **settings)
    assert output.token_losses.requires_grad
    return sum(storages.values())


@pytest.mark.parametrize("method", ["ponderlm2", "ponderlm3"])
def test_passes_without_gradient_leave_nothing_for_backward(groups: ParallelGroups, method: str) -> None:
    model = tiny_model(groups, method)

    few, many = (kept_bytes(model, num_jacobi_iterations=j, gradient_passes=2) for j in (1, 6))

    assert few == many
    assert few < kept_bytes(model, num_jacobi_iterations=1)


def residuals_of(model: PonderModel, num_sweeps: int) -> list[float]:
    with torch.no_grad():
        statistics = model(PACKED, num_jacobi_iterations=num_sweeps).statistics
    values = residual(statistics["residual_change"], statistics["residual_norm"])
    return [float(value) for value in values[:num_sweeps]]


@pytest.mark.parametrize("method", ["ponderlm2", "ponderlm3"])
@pytest.mark.parametrize("gradient_passes", [None, 1, 3])
def test_sweeps_end_after_the_first_whose_residual_is_within_the_tolerance(
    groups: ParallelGroups, method: str, gradient_passes: int | None
) -> None:
    model = tiny_model(groups, method)
    residuals = residuals_of(model, 6)
    assert residuals == sorted(residuals, reverse=True), "the residual must shrink"
    remaining = 0 if gradient_passes is None else gradient_passes - 1

    for ended_by in (1, 2, 3):
        tolerance = (residuals[ended_by - 1] + residuals[ended_by]) / 2
        settings = {"gradient_passes": gradient_passes, "num_jacobi_iterations": 6}
        output = model(PACKED, sweep_tolerance=tolerance, **settings)
        found = gradients_of(model, PACKED, sweep_tolerance=tolerance, **settings)
        # The sweep that is within it is the first of those below.
        settings["num_jacobi_iterations"] = ended_by + 1 + remaining
        expected = model(PACKED, **settings)
        wanted = gradients_of(model, PACKED, **settings)

        assert output.num_sweeps == expected.num_sweeps == ended_by + 1 + remaining
        assert torch.equal(output.token_losses, expected.token_losses)
        assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


def test_a_tolerance_that_is_never_met_changes_nothing(groups: ParallelGroups) -> None:
    model = tiny_model(groups, "ponderlm2")

    one, other = (gradients_of(model, PACKED, sweep_tolerance=value) for value in (None, 1e-30))

    assert all(torch.equal(other[name], gradient) for name, gradient in one.items())
