"""Gradients of every method against finite differences in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Mixture, Penalty, Residual
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from tests.support.ponder_models import (
    batch_of,
    each_backbone,
    each_model,
    gradients_of,
    mean_loss,
    observed,
    random_tokens,
    tiny_model,
)
from tests.support.slopes import assert_slope

# Padding, two documents and unlabelled positions.
BATCH = batch_of(random_tokens(2, 6), torch.tensor([[0, 0, 0, 1, 1, 1], [2, 2, 2, 2, 2, PADDING_DOCUMENT]]))


def mild_model(
    groups: ParallelGroups,
    method: Method | str,
    architecture: Architecture | str = Architecture.LLAMA,
    **ponder: Any,
) -> PonderModel:
    """Return a model whose router or gates are not saturated, where they would have no gradient.

    The threshold lies where gates of both kinds are seen.
    """
    threshold = {Method.ADAPONDERLM: 0.4, Method.ADAPTIVE_LATENT_COT: 0.35}.get(Method(method), 1e-2)
    # Without an exponent, no factor of the penalty is held constant, which differences would not do.
    settings = {"pruning_threshold": threshold, "penalty_exponent": 0.0, **ponder}
    model = tiny_model(groups, method, architecture, ponder=settings)
    with torch.no_grad():
        for name, parameter in model.ponder.named_parameters():
            if name.endswith("2.weight"):
                parameter.mul_(0.1)
    return model


def loss_of(model: PonderModel) -> Tensor:
    return mean_loss(observed(model, BATCH)[0], BATCH, penalty_weight=0.3)


@each_model
def test_the_gradient_of_the_loss_is_right_in_all_weights(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = mild_model(groups, method, architecture)

    assert_slope(lambda: loss_of(model), list(model.parameters()))


@pytest.mark.parametrize(
    ("method", "ponder"),
    [
        *((Method.PONDERLM2, {"mixture": mixture}) for mixture in (Mixture.SOFTMAX, Mixture.TOP_K)),
        *((Method.PONDERLM3, {"mixture": mixture}) for mixture in (Mixture.SOFTMAX, Mixture.TOP_K)),
        *((Method.PONDERLM, {"mixture": mixture}) for mixture in (Mixture.HIDDEN, Mixture.TOP_K)),
        *((Method.ADAPONDERLM, {"mixture": mixture}) for mixture in (Mixture.HIDDEN, Mixture.TOP_K)),
        (Method.PONDERLM, {"residual": Residual.FROM_EMBEDDING, "softmax_temperature": 0.5}),
        (Method.PONDERLM, {"multiply_embedding": True}),
        (Method.ADAPTIVE_LATENT_COT, {"step_input_scale": 2.0}),
    ],
)
def test_the_gradient_of_every_variant_is_right(
    groups: ParallelGroups, method: Method, ponder: dict[str, Any]
) -> None:
    model = mild_model(groups, method, mixture_top_k=7, **ponder)

    assert_slope(lambda: loss_of(model), list(model.parameters()))


@each_model
def test_no_weight_is_left_without_gradient(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = mild_model(groups, method, architecture)

    gradients = gradients_of(model, BATCH)

    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert [name for name, gradient in gradients.items() if not gradient.abs().max() > 1e-8] == []


@each_model
def test_no_pass_is_cut_off_from_the_gradient(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    # What a pass computes reaches the loss only through the passes after it.
    model = mild_model(groups, method, architecture)
    output, seen = observed(model, BATCH, num_jacobi_iterations=2)
    made = {
        name: value
        for name, value in seen.items()
        if name.startswith(("stack_outputs/", "thoughts/", "log_w/", "hidden/"))
    }
    assert len([name for name in made if name.startswith("stack")]) == model.ponder.plan(2).num_passes

    gradients = torch.autograd.grad(mean_loss(output, BATCH), list(made.values()))

    for name, gradient in zip(made, gradients, strict=True):
        assert float(gradient.abs().max()) > 1e-8, name


@each_backbone
def test_the_router_learns_through_the_mask(groups: ParallelGroups, architecture: Architecture) -> None:
    # The hidden states of the final pass come before readout and penalty: only the mask reaches them.
    model = mild_model(groups, "ponderlm3", architecture)
    weights = torch.randn(observed(model, BATCH)[1]["last_hidden"].shape, dtype=torch.float64)

    assert_slope(
        lambda: (observed(model, BATCH)[1]["last_hidden"] * weights).sum(), list(model.ponder.parameters())
    )


@each_backbone
def test_every_gate_learns_through_what_it_lets_in(
    groups: ParallelGroups, architecture: Architecture
) -> None:
    model = mild_model(groups, "adaponderlm", architecture)
    output, _ = observed(model, BATCH)
    assert output.steps is not None
    assert len(output.steps.unique()) > 1, "tokens must differ in their steps"

    for gate in model.ponder.gates:
        assert_slope(lambda: mean_loss(observed(model, BATCH)[0], BATCH), list(gate.parameters()))


@pytest.mark.parametrize(
    ("method", "ponder"),
    [
        *((Method.PONDERLM3, {"penalty": kind}) for kind in Penalty),
        (Method.ADAPONDERLM, {"bottom_k_floor": False}),
        # Gates that are open are among those that it pushes down.
        (Method.ADAPONDERLM, {"bottom_k_fraction": 0.75}),
    ],
)
def test_the_gradient_of_the_penalty_is_right(
    groups: ParallelGroups, method: Method, ponder: dict[str, Any]
) -> None:
    model = mild_model(groups, method, **ponder)

    def penalty() -> Tensor:
        value = observed(model, BATCH)[0].penalty
        assert value is not None
        return value

    assert_slope(penalty, list(model.parameters()))


def test_a_look_up_of_the_padding_token_trains_no_embedding(groups: ParallelGroups) -> None:
    tokens = random_tokens()
    tokens[:, 3] = 7
    gradients = [
        gradients_of(tiny_model(groups, "ponderlm2", padding_token_id=padding), batch_of(tokens))
        for padding in (None, 7)
    ]

    plain, without = (each["embedding.word_embeddings.weight"] for each in gradients)
    assert float(plain[7].abs().max()) > 1e-6
    assert (without[7] == 0).all()
    others = torch.arange(len(plain)) != 7
    assert torch.equal(plain[others], without[others])
