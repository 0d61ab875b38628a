"""A blended start and held decisions against the left-to-right oracle, gradients included."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder import start
from megatron_ext.ponder.config import Method, Mixture
from megatron_ext.weights import load_weights, whole_tensors
from tests.support.ponder_models import (
    RECOMPUTE,
    VOCAB_SIZE,
    batch_of,
    each_backbone,
    halting_tokens,
    mean_loss,
    oracle_results,
    tiny_model,
)

LENGTH, NUM_THOUGHTS = 5, 2
SWEEPS = NUM_THOUGHTS * (LENGTH - 1)
TOKENS = halting_tokens(LENGTH)
BATCH = batch_of(TOKENS)
EXACT = 1e-9
PONDERING = [method for method in Method if method.facts.ponders]
each_pondering_method = pytest.mark.parametrize("method", PONDERING)


def model_of(groups: ParallelGroups, method: Method, *arguments: Any, **settings: Any) -> PonderModel:
    """A model whose soft mask is its hard one, so that training is what the oracle computes."""
    ponder = {"pruning_threshold": 0.0} if method.facts.weighs_slots else {}
    return tiny_model(groups, method, *arguments, ponder=ponder | settings.pop("ponder", {}), **settings)


def trained(model: PonderModel, **settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return logits [S, V] of a training forward, and the gradients of its loss by Hugging Face name."""
    seen: dict[str, Tensor] = {}
    output = model(
        BATCH,
        num_jacobi_iterations=SWEEPS,
        observe=lambda name, value: seen.update({name: value.detach().clone()}),
        **settings,
    )
    model.zero_grad(set_to_none=True)
    mean_loss(output, BATCH).backward()
    gradients = whole_tensors(
        model, lambda weight: torch.zeros_like(weight) if weight.grad is None else weight.grad
    )
    return seen["logits"][:, 0, :VOCAB_SIZE], gradients


def oracle(model: PonderModel, **settings: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The same by the oracle."""
    weights = {
        name: value.detach().clone().requires_grad_()
        for name, value in whole_tensors(model, lambda weight: weight).items()
    }
    results = oracle_results(model, TOKENS[0].tolist(), weights=weights, **settings)
    logits = torch.stack([result.logits for result in results])
    functional.cross_entropy(logits[:-1], TOKENS[0, 1:]).backward()
    gradients = {
        name: torch.zeros_like(value) if value.grad is None else value.grad for name, value in weights.items()
    }
    return logits.detach(), gradients


def assert_same(found: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=EXACT)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(
            found[1][name], gradient, rtol=0, atol=EXACT, msg=lambda text, name=name: f"{name}: {text}"
        )


@each_backbone
@each_pondering_method
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_blended_start_is_the_oracle(
    groups: ParallelGroups, method: Method, architecture: Architecture, share: float
) -> None:
    model = model_of(groups, method, architecture)

    assert_same(trained(model, pondering_share=share), oracle(model, pondering_share=share))


@pytest.mark.parametrize("method", [method for method in PONDERING if "mixture" in method.facts.settings])
def test_a_blended_start_with_mixtures_is_the_oracle(groups: ParallelGroups, method: Method) -> None:
    model = model_of(groups, method, ponder={"mixture": Mixture.TOP_K, "mixture_top_k": 7})

    assert_same(trained(model, pondering_share=0.6), oracle(model, pondering_share=0.6))


@each_backbone
@pytest.mark.parametrize("method", [method for method in Method if method.halts])
def test_held_decisions_learn_nothing(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = model_of(groups, method, architecture)
    decider = method.facts.decider
    assert decider is not None

    held = trained(model, pondering_share=0.3, holds_decisions=True)

    assert_same(held, oracle(model, pondering_share=0.3, holds_decisions=True))
    own = [gradient for name, gradient in held[1].items() if name.startswith(f"ponder.{decider.name}")]
    assert own
    assert not any(gradient.any() for gradient in own)
    free = trained(model, pondering_share=0.3)
    assert torch.equal(free[0], held[0]), "the forward is the same"
    assert any(gradient.any() for name, gradient in free[1].items() if name.startswith("ponder."))


@each_pondering_method
def test_recompute_gives_the_gradients_of_one_graph(groups: ParallelGroups, method: Method) -> None:
    wanted = trained(model_of(groups, method), pondering_share=0.3)

    for settings in RECOMPUTE.values():
        assert_same(trained(model_of(groups, method, **settings), pondering_share=0.3), wanted)


@each_backbone
@each_pondering_method
def test_the_first_loss_is_that_of_the_trained_model(
    groups: ParallelGroups, method: Method, architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(groups, method, architecture)
    trained_model = model_of(groups, method, architecture, num_latent_thoughts=0)
    weights = whole_tensors(model, lambda weight: weight)
    expected = whole_tensors(trained_model, lambda weight: weight)
    load_weights(
        trained_model,
        {name: weights[name][: value.shape[0]] for name, value in expected.items()},
    )
    base, _ = trained(trained_model)

    near = trained(model, pondering_share=0.0)[0]
    monkeypatch.setattr(start, "FIRST_LOG_WEIGHT", -1e9)
    exact = trained(model, pondering_share=0.0)[0]

    torch.testing.assert_close(exact, base, rtol=0, atol=EXACT)
    # Keys of thoughts are there at e^-6 of their weight.
    is_seen = method.facts.has_slots
    assert (float((near - base).abs().max()) > EXACT) == is_seen
    assert float((near - base).abs().max()) < 0.1 * float(base.abs().max())
