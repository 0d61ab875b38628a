"""What a token may not see: later tokens, other documents, padding."""

import pytest
import torch
from torch import Tensor

from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Penalty
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from tests.support.ponder_models import (
    PADDED_VOCAB_SIZE,
    VOCAB_SIZE,
    batch_of,
    mean_loss,
    observed,
    random_tokens,
    tiny_model,
)

METHODS = ["vanilla", "ponderlm2", "ponderlm3"]
BACKBONES = ["llama", "gpt_neox"]

each_model = pytest.mark.parametrize(
    ("method", "architecture"), [(method, architecture) for method in METHODS for architecture in BACKBONES]
)


def logits_of(model: object, tokens: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """[S, B, V]."""
    with torch.no_grad():
        return observed(model, batch_of(tokens, document_ids))[1]["logits"]


def changed(tokens: Tensor, positions: slice) -> Tensor:
    """Other tokens at some positions."""
    tokens = tokens.clone()
    tokens[:, positions] = (tokens[:, positions] + 1) % VOCAB_SIZE
    return tokens


@each_model
def test_earlier_logits_do_not_move_with_later_tokens(
    groups: ParallelGroups, method: str, architecture: str
) -> None:
    model = tiny_model(groups, method, architecture, dtype=torch.float32)
    tokens = random_tokens(length=9)
    before = logits_of(model, tokens)

    for start in (1, 5, 8):
        after = logits_of(model, changed(tokens, slice(start, None)))

        assert torch.equal(after[:start], before[:start])
        assert (after[start] != before[start])[:, :VOCAB_SIZE].any(dim=-1).all()


@each_model
def test_documents_do_not_see_each_other(groups: ParallelGroups, method: str, architecture: str) -> None:
    model = tiny_model(groups, method, architecture)
    tokens = random_tokens(length=9)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [3, 3, 5, 5, 5, 5, 5, 5, 6]])
    before = logits_of(model, tokens, documents)

    after = logits_of(model, changed(tokens, slice(0, 2)), documents)

    assert torch.equal(after[4:, 0], before[4:, 0])
    assert torch.equal(after[2:, 1], before[2:, 1])
    assert not torch.equal(after[:4, 0], before[:4, 0])
    alone = logits_of(model, tokens[:1, 4:])
    torch.testing.assert_close(before[4:, :1], alone, rtol=1e-11, atol=1e-11)


def test_positions_may_run_on_through_packed_documents(groups: ParallelGroups) -> None:
    # Rotary attention is relative: where a document starts counting changes nothing within it.
    model = tiny_model(groups, "ponderlm3", "llama")
    batch = batch_of(random_tokens(length=9), torch.tensor([[0] * 4 + [1] * 5, [0] * 7 + [1] * 2]))
    before = observed(model, batch)[1]["logits"]

    batch.position_ids.copy_(torch.arange(9).expand(2, 9))

    torch.testing.assert_close(observed(model, batch)[1]["logits"], before, rtol=1e-10, atol=1e-10)


@each_model
@pytest.mark.parametrize("penalty", Penalty)
def test_padding_counts_nowhere(
    groups: ParallelGroups, method: str, architecture: str, penalty: Penalty
) -> None:
    model = tiny_model(groups, method, architecture, ponder={"penalty": penalty})
    tokens = random_tokens(length=9)
    documents = torch.zeros_like(tokens)
    documents[1, 5:] = PADDING_DOCUMENT
    batch, other = batch_of(tokens, documents), batch_of(changed(tokens, slice(5, None)), documents)
    other.tokens[0] = tokens[0]
    other.labels[0] = batch.labels[0]

    (first, seen), (second, seen_other) = observed(model, batch), observed(model, other)

    assert torch.equal(seen["logits"][:, 0], seen_other["logits"][:, 0])
    assert torch.equal(seen["logits"][:5, 1], seen_other["logits"][:5, 1])
    assert not torch.equal(seen["logits"][5:, 1], seen_other["logits"][5:, 1])
    # The padded tokens themselves moved, and nothing that is summed or trained did.
    assert torch.equal(
        mean_loss(first, batch, penalty_weight=0.3), mean_loss(second, other, penalty_weight=0.3)
    )
    for name in first.statistics:
        torch.testing.assert_close(first.statistics[name], second.statistics[name], rtol=1e-12, atol=0)
    assert first.statistics["real_tokens"].item() == 14
    assert first.statistics["labelled_tokens"].item() == 12


@each_model
def test_padding_rows_of_the_vocabulary_take_no_probability(
    groups: ParallelGroups, method: str, architecture: str
) -> None:
    logits = logits_of(tiny_model(groups, method, architecture), random_tokens())

    assert logits.shape[-1] == PADDED_VOCAB_SIZE
    assert (logits[..., VOCAB_SIZE:] == float("-inf")).all()
    assert torch.isfinite(logits[..., :VOCAB_SIZE]).all()


@pytest.mark.parametrize("architecture", BACKBONES)
def test_without_thoughts_and_scale_ponderlm2_is_vanilla(groups: ParallelGroups, architecture: str) -> None:
    batch = batch_of(random_tokens())
    vanilla = tiny_model(groups, "vanilla", architecture)
    pondering = tiny_model(
        groups, "ponderlm2", architecture, num_latent_thoughts=0, ponder={"scale_embeds": False}
    )

    for sweeps in (0, 3):
        (plain, plain_seen), (found, seen) = (
            observed(vanilla, batch),
            observed(pondering, batch, num_jacobi_iterations=sweeps),
        )

        assert torch.equal(seen["logits"], plain_seen["logits"])
        gradients = [
            torch.autograd.grad(mean_loss(output, batch), list(model.parameters()))
            for model, output in ((vanilla, plain), (pondering, found))
        ]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("architecture", BACKBONES)
def test_a_router_that_never_halts_is_ponderlm2(groups: ParallelGroups, architecture: str) -> None:
    batch = batch_of(random_tokens())
    halting, plain = (tiny_model(groups, method, architecture) for method in ("ponderlm3", "ponderlm2"))
    with torch.no_grad():
        halting.ponder.router[2].weight.zero_()
        halting.ponder.router[2].bias.copy_(torch.tensor([0.0, 0.0, 200.0]))
    shared = dict(plain.named_parameters())
    with torch.no_grad():
        for name, parameter in halting.named_parameters():
            if name in shared:
                shared[name].copy_(parameter)

    found, expected = (observed(model, batch)[1]["logits"] for model in (halting, plain))

    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
