"""Adaptive Latent CoT: exit masses, and gradients against those of the oracle (definitions 3.3)."""

import math

import pytest
import torch
from torch import Tensor, nn

from megatron_ext.methods.adaptive_latent_cot import AdaptiveLatentCoT
from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, PonderConfig
from megatron_ext.ponder.halting import exit_masses
from megatron_ext.ponder.reference.backbone import Backbone
from megatron_ext.ponder.reference.iterations import AdaptiveLatentCoT as Oracle
from megatron_ext.weights import whole_tensors
from tests.support.ponder_models import (
    RECOMPUTE,
    batch_of,
    each_backbone,
    halting_tokens,
    mean_loss,
    tiny_model,
)

PENALTY_WEIGHT = 0.7


def test_exit_masses_of_a_hand_made_token() -> None:
    # g is 1/2, 1/4, 1/2: reach is 1, 1/2, 1/8, 1/16.
    logits = torch.tensor([0.0, -math.log(3), 0.0], dtype=torch.float64).reshape(1, 1, 3)

    for threshold, expected in (
        (0.0, [0.5, 0.375, 0.0625, 0.0625]),
        (0.0625, [0.5, 0.375, 0.0625, 0.0625]),
        (0.1, [0.5, 0.375, 0.125, 0.0]),
        (0.2, [0.5, 0.5, 0.0, 0.0]),
        (0.6, [1.0, 0.0, 0.0, 0.0]),
    ):
        masses, steps = exit_masses(logits, threshold)
        assert masses[0, :, 0].tolist() == pytest.approx(expected)
        assert int(steps) == max(k for k, mass in enumerate(expected) if mass)


def test_exit_masses_have_gradients_and_the_place_where_a_token_stops_has_none() -> None:
    logits = torch.tensor([0.3, -1.0, 0.2], dtype=torch.float64).reshape(1, 1, 3).requires_grad_()

    masses, steps = exit_masses(logits, 0.2)
    (gradient,) = torch.autograd.grad(masses[0, 1, 0], logits)

    # It stops after step 1, whose mass is the reach of step 1.
    gate = 1 / (1 + math.exp(-0.3))
    assert int(steps) == 1
    assert gradient.flatten().tolist() == pytest.approx([gate * (1 - gate), 0.0, 0.0])


def oracle_gradients(model: PonderModel, tokens: list[int]) -> dict[str, Tensor]:
    """Gradients of loss and penalty of one sequence, computed token by token."""
    config = model.config
    weights = {
        name: value.clone().requires_grad_()
        for name, value in whole_tensors(model, lambda parameter: parameter).items()
    }
    backbone = Backbone(
        is_neox=config.architecture is Architecture.GPT_NEOX,
        weights=weights,
        num_layers=config.num_layers,
        num_heads=config.num_attention_heads,
        num_key_value_heads=config.num_query_groups,
        rotary_size=config.rotary_size,
        rotary_base=config.rotary_base,
        norm_epsilon=config.layernorm_epsilon,
    )
    hidden: list[Tensor] = []

    class Watched(Oracle):
        def run(self, row: Tensor, *, log_weight: Tensor | None = None) -> Tensor:
            hidden.append(super().run(row, log_weight=log_weight))
            return hidden[-1]

    oracle = Watched(backbone, config.ponder)
    losses, penalty = [], torch.zeros((), dtype=torch.float64)
    for position, token in enumerate(tokens):
        hidden.clear()
        result = oracle.consume(token, position)
        if position + 1 == len(tokens):
            break
        label = tokens[position + 1]
        losses.append(-torch.log_softmax(result.logits, dim=0)[label])
        for state, logit in zip(hidden, result.gate_logits, strict=False):
            correctness = torch.softmax(backbone.head @ state, dim=0)[label].detach()
            penalty = penalty + correctness**config.ponder.penalty_exponent * torch.sigmoid(logit)
    loss = torch.stack(losses).mean() + PENALTY_WEIGHT * penalty / len(tokens)
    used = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(weights, used, strict=True))


@each_backbone
@pytest.mark.parametrize("recompute", [None, "per_pass"])
def test_gradients_are_those_of_the_oracle(
    groups: ParallelGroups, architecture: Architecture, recompute: str | None
) -> None:
    model = tiny_model(
        groups,
        Method.ADAPTIVE_LATENT_COT,
        architecture,
        num_latent_thoughts=3,
        ponder={"penalty_exponent": 1.5},
        **(RECOMPUTE[recompute] if recompute else {}),
    ).train()
    tokens = halting_tokens()

    batch = batch_of(tokens)
    output = model(batch, num_jacobi_iterations=0)
    mean_loss(output, batch, penalty_weight=PENALTY_WEIGHT).backward()

    found = whole_tensors(model, lambda value: torch.zeros_like(value) if value.grad is None else value.grad)
    expected = oracle_gradients(model, tokens[0].tolist())
    assert output.steps is not None
    assert len(output.steps.unique()) > 2, "tokens must stop at different steps"
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float(gradient.abs().max()) > 0, name
        torch.testing.assert_close(found[name], gradient, rtol=1e-7, atol=1e-11)


def test_every_token_starts_by_going_on_with_nine_tenths() -> None:
    method = AdaptiveLatentCoT(PonderConfig(method=Method.ADAPTIVE_LATENT_COT, num_latent_thoughts=3), 8)

    assert [tuple(p.shape) for p in method.router.parameters()] == [(1, 8), (1,)]
    torch.testing.assert_close(torch.sigmoid(method.router(torch.randn(5, 2, 8))), torch.full((5, 2, 1), 0.9))


def test_a_bfloat16_router_decides_in_float32() -> None:
    config = PonderConfig(method=Method.ADAPTIVE_LATENT_COT, num_latent_thoughts=2)
    method, rounded = AdaptiveLatentCoT(config, 16), AdaptiveLatentCoT(config, 16).bfloat16()
    nn.init.normal_(rounded.router.weight)
    method.load_state_dict(rounded.state_dict())
    hidden = torch.randn(4, 2, 16).bfloat16()

    logits = rounded._router_logits(hidden)

    assert logits.dtype == torch.float32
    assert torch.equal(logits, method._router_logits(hidden.float()))


def test_stages_that_do_not_decide_hold_no_router() -> None:
    config = PonderConfig(method=Method.ADAPTIVE_LATENT_COT, num_latent_thoughts=2)

    assert list(AdaptiveLatentCoT(config, 16, decides=False).parameters()) == []
