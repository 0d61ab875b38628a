"""What PonderLM-3 reads of its steps, against the left-to-right oracle, gradients included."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.decoding import BatchDecoder
from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Reading
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.weights import whole_tensors
from tests.support.ponder_models import (
    RECOMPUTE,
    VOCAB_SIZE,
    batch_of,
    decode_one_by_one,
    each_backbone,
    halting_tokens,
    mean_loss,
    observed,
    oracle_results,
    tiny_model,
)

LENGTH, NUM_THOUGHTS = 5, 2
SWEEPS = NUM_THOUGHTS * (LENGTH - 1)
TOKENS = halting_tokens(LENGTH)
BATCH = batch_of(TOKENS)
EXACT = 1e-9
# Near the largest entropy, ln 3, so that some tokens are below it and some steps would be pruned.
FLOOR, FLOOR_WEIGHT, STEP_WEIGHT = 0.9, 2.0, 0.7
CHOICES: list[dict[str, Any]] = [
    {"reading": Reading.DETACHED_MIXTURE},
    {"reading": Reading.LAST_STEP},
    {"step_loss_weight": STEP_WEIGHT},
    {"entropy_floor": FLOOR, "entropy_floor_weight": FLOOR_WEIGHT},
    {"reading": Reading.LAST_STEP, "step_loss_weight": STEP_WEIGHT, "entropy_floor": FLOOR},
]
each_choice = pytest.mark.parametrize("choice", CHOICES, ids=str)


def model_of(groups: ParallelGroups, choice: dict[str, Any], *arguments: Any, **settings: Any) -> PonderModel:
    """A model whose soft mask is its hard one, so that training is what the oracle computes."""
    ponder = {"pruning_threshold": 0.0, **choice}
    return tiny_model(groups, Method.PONDERLM3, *arguments, ponder=ponder, **settings)


def trained(model: PonderModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a training forward, and its gradients by Hugging Face name."""
    output = model(BATCH, num_jacobi_iterations=SWEEPS)
    model.zero_grad(set_to_none=True)
    loss = mean_loss(output, BATCH)
    loss.backward()
    return loss.detach(), whole_tensors(model, gradient_of)


def gradient_of(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight) if weight.grad is None else weight.grad


def oracle(model: PonderModel) -> tuple[Tensor, dict[str, Tensor]]:
    """The same by the oracle, every part of the loss as its definition says."""
    weights = {
        name: value.detach().clone().requires_grad_()
        for name, value in whole_tensors(model, lambda weight: weight).items()
    }
    results, ponder = oracle_results(model, TOKENS[0].tolist(), weights=weights), model.config.ponder
    labels = TOKENS[0, 1:]
    loss = functional.cross_entropy(torch.stack([result.logits for result in results])[:-1], labels)
    for step in range(NUM_THOUGHTS + 1):
        alone = torch.stack([result.step_logits[step] for result in results])[:-1]
        loss = loss + ponder.step_loss_weight / (NUM_THOUGHTS + 1) * functional.cross_entropy(alone, labels)
    for result in results:
        entropy = -sum(share * share.log() for share in result.shares)
        if entropy < ponder.entropy_floor:
            loss = loss + ponder.entropy_floor_weight * (ponder.entropy_floor - entropy) / LENGTH
    loss.backward()
    return loss.detach(), {name: gradient_of(value) for name, value in weights.items()}


def assert_same(found: tuple[Tensor, dict[str, Tensor]], wanted: tuple[Tensor, dict[str, Tensor]]) -> None:
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=EXACT)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=EXACT)


@each_backbone
@each_choice
def test_training_is_the_oracle(
    groups: ParallelGroups, choice: dict[str, Any], architecture: Architecture
) -> None:
    model = model_of(groups, choice, architecture)

    found = trained(model)

    assert_same(found, oracle(model))
    plain = trained(model_of(groups, {}, architecture))
    assert any(not torch.allclose(plain[1][name], gradient) for name, gradient in found[1].items())


@each_choice
def test_recompute_gives_the_gradients_of_one_graph(groups: ParallelGroups, choice: dict[str, Any]) -> None:
    wanted = trained(model_of(groups, choice))

    for settings in RECOMPUTE.values():
        assert_same(trained(model_of(groups, choice, **settings)), wanted)


@each_backbone
@pytest.mark.parametrize("reading", Reading)
def test_decoding_reads_what_the_pruned_forward_reads(
    groups: ParallelGroups, reading: Reading, architecture: Architecture
) -> None:
    model = tiny_model(groups, Method.PONDERLM3, architecture, ponder={"reading": reading})
    tokens = halting_tokens(9)

    decoded, steps, _ = decode_one_by_one(model, tokens[0].tolist())
    with torch.no_grad():
        _, seen = observed(model, batch_of(tokens), num_jacobi_iterations=16, prune=True)
        results = oracle_results(model, tokens[0].tolist())

    assert len(set(steps)) > 1
    forward = seen["logits"][:, 0, : decoded.shape[1]]
    torch.testing.assert_close(decoded, forward, rtol=0, atol=EXACT)
    expected = torch.stack([result.logits for result in results])
    torch.testing.assert_close(forward[:, :VOCAB_SIZE], expected, rtol=0, atol=EXACT)


def test_a_prompt_is_read_as_its_tokens_are(groups: ParallelGroups) -> None:
    model = tiny_model(groups, Method.PONDERLM3, ponder={"reading": Reading.LAST_STEP})
    tokens = halting_tokens(9)[0].tolist()
    one_by_one, _, _ = decode_one_by_one(model, tokens)
    decoder = BatchDecoder(model, num_sequences=1, max_tokens=len(tokens))

    (together,) = decoder.read_prompts([0], [tokens], sweeps=Sweeps(number=NUM_THOUGHTS * len(tokens)))

    torch.testing.assert_close(together.logits, one_by_one[-1], rtol=0, atol=EXACT)


def test_steps_are_measured_alone_and_with_one_more(groups: ParallelGroups) -> None:
    model = model_of(groups, {})
    with torch.no_grad():
        results = oracle_results(model, TOKENS[0].tolist())
        output = model(BATCH, num_jacobi_iterations=SWEEPS, measures_steps=True)
        plain = model(BATCH, num_jacobi_iterations=SWEEPS)

    labels = TOKENS[0, 1:]
    alone = torch.stack([result.step_logits for result in results])[:-1]
    assert output.statistics["measured_tokens"].tolist() == [LENGTH - 1]
    for step, nll in enumerate(output.statistics["step_nll"].tolist()):
        assert nll == pytest.approx(float(functional.cross_entropy(alone[:, step], labels, reduction="sum")))
    shares = torch.stack([result.shares for result in results])[:-1]
    moved = torch.stack([0 * shares[:, 0], shares[:, 0], shares[:, 1] + shares[:, 2]], dim=1)
    # Logits are linear in what is read.
    more = (moved.unsqueeze(2) * alone).sum(dim=1)
    expected = float(functional.cross_entropy(more, labels, reduction="sum"))
    assert output.statistics["one_more_nll"].tolist() == [pytest.approx(expected)]
    assert output.step_losses is None
    assert plain.statistics["measured_tokens"].tolist() == [0]
    assert plain.statistics["nll"].tolist() == output.statistics["nll"].tolist()
