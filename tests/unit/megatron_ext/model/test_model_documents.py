"""Packed documents never see each other, in any slot or iteration of any method."""

import pytest
import torch

from megatron_ext.model.config import Architecture
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method
from tests.support.document_kernel import kernel_for_documents
from tests.support.ponder_models import (
    batch_of,
    changed,
    each_model,
    gradients_of,
    observed,
    random_tokens,
    results_by_token,
    tiny_model,
)

TOKENS = random_tokens(length=9)
# Of the second sequence, the first document that follows on the changed one has a third behind it.
DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [3, 3, 5, 5, 5, 5, 5, 5, 6]])
BORDERS = (4, 2)


@each_model
@pytest.mark.parametrize("restart", [True, False], ids=["positions restart", "positions run on"])
@pytest.mark.parametrize("disturbed", ["first", "rest"])
def test_a_document_does_not_change_with_another(
    groups: ParallelGroups, method: Method, architecture: Architecture, restart: bool, disturbed: str
) -> None:
    model = tiny_model(groups, method, architecture)
    tokens = TOKENS
    for row, border in enumerate(BORDERS):
        part = slice(0, border) if disturbed == "first" else slice(border, None)
        tokens = changed(tokens, part, row=row)

    before, after = (
        results_by_token(model, batch_of(either, DOCUMENTS, restart_positions=restart))
        for either in (TOKENS, tokens)
    )

    for name, results in before.items():
        for row, border in enumerate(BORDERS):
            first, rest = (results[part, :, row] for part in (slice(border), slice(border, None)))
            other_first, other_rest = after[name][:border, :, row], after[name][border:, :, row]
            assert torch.equal(first, other_first) == (disturbed == "rest"), name
            assert torch.equal(rest, other_rest) == (disturbed == "first"), name


@each_model
@pytest.mark.parametrize("restart", [True, False], ids=["positions restart", "positions run on"])
def test_a_packed_document_gives_the_same_as_alone(
    groups: ParallelGroups, method: Method, architecture: Architecture, restart: bool
) -> None:
    # Rotary attention is relative: the first position of a document changes nothing within it.
    model = tiny_model(groups, method, architecture)
    batch = batch_of(TOKENS, DOCUMENTS, restart_positions=restart)
    assert bool((batch.position_ids[0, 4] == 0) == restart)

    packed = results_by_token(model, batch)

    for row, part in ((0, slice(4)), (0, slice(4, 9)), (1, slice(2, 8)), (1, slice(8, 9))):
        alone = results_by_token(model, batch_of(TOKENS[row : row + 1, part]))
        for name, results in alone.items():
            torch.testing.assert_close(packed[name][part, :, row], results[:, :, 0], rtol=1e-10, atol=1e-10)


def test_one_token_documents_see_nothing_but_themselves(groups: ParallelGroups) -> None:
    model = tiny_model(groups, "adaponderlm")

    packed = observed(model, batch_of(TOKENS, torch.arange(9).expand(2, 9)))[1]["logits"]

    alone = observed(model, batch_of(TOKENS.reshape(-1, 1)))[1]["logits"]
    torch.testing.assert_close(packed, alone[0].unflatten(0, (2, 9)).transpose(0, 1), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("method", "skips"), [*((method, False) for method in Method), (Method.PONDERLM3, True)]
)
def test_one_call_for_all_documents_equals_the_loop(
    groups: ParallelGroups, method: Method, skips: bool
) -> None:
    model = tiny_model(groups, method, num_latent_thoughts=1)
    many = torch.arange(9).expand(2, 9) // 2

    def compute(document_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        batch = batch_of(TOKENS, document_ids)
        # Only tokens of PonderLM-3 have rows that need not be computed.
        settings = {"prune": True, "skips_pruned_rows": True} if skips else {}
        with torch.no_grad():
            losses = model(batch, num_jacobi_iterations=1, **settings).token_losses
        return {
            "losses in evaluation": losses,
            **gradients_of(model, batch, num_jacobi_iterations=1, **settings),
        }

    expected = compute(DOCUMENTS)
    with kernel_for_documents() as calls:
        found = compute(DOCUMENTS)
        num_calls = len(calls)
        compute(many)

    assert len(calls) == 2 * num_calls > 0
    for name, one in found.items():
        torch.testing.assert_close(one, expected[name], msg=lambda text, name=name: f"{name}: {text}")
