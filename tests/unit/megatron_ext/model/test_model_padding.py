"""Padding after a sequence and padding of the vocabulary change nothing."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from megatron_ext.model.config import Architecture
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Penalty
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from tests.support.ponder_models import (
    PADDED_VOCAB_SIZE,
    VOCAB_SIZE,
    batch_of,
    changed,
    each_model,
    gradients_of,
    mean_loss,
    observed,
    random_tokens,
    results_by_token,
    tiny_model,
)

TOKENS = random_tokens(length=9)
DOCUMENTS = torch.zeros_like(TOKENS)
DOCUMENTS[1, 5:] = PADDING_DOCUMENT
PADDED = batch_of(TOKENS, DOCUMENTS)


def penalised_model(groups: ParallelGroups, method: Method, architecture: Architecture) -> PonderModel:
    """Return a model with a penalty where the method has one: one kind per backbone."""
    penalty = Penalty.BOTTOM_K if architecture is Architecture.LLAMA else Penalty.EXPECTED_STEPS
    return tiny_model(groups, method, architecture, ponder={"penalty": penalty, "bottom_k_fraction": 0.4})


def assert_all_close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-11, msg=name)


@each_model
def test_the_content_of_padding_changes_nothing(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = penalised_model(groups, method, architecture)
    other = batch_of(changed(TOKENS, slice(5, None), row=1), DOCUMENTS)

    before, after = results_by_token(model, PADDED), results_by_token(model, other)
    for name, results in before.items():
        assert torch.equal(after[name][:, :, 0], results[:, :, 0]), name
        assert torch.equal(after[name][:5, :, 1], results[:5, :, 1]), name
        assert not torch.equal(after[name][5:, :, 1], results[5:, :, 1]), name

    # The padded tokens themselves changed, and nothing that is summed or trained did.
    (first, _), (second, _) = observed(model, PADDED), observed(model, other)
    losses = [mean_loss(first, PADDED, penalty_weight=0.3), mean_loss(second, other, penalty_weight=0.3)]
    assert torch.equal(*losses)
    assert_all_close(first.statistics, second.statistics)
    assert_all_close(gradients_of(model, PADDED), gradients_of(model, other))


@each_model
def test_a_padded_sequence_gives_the_same_as_a_shorter_one(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = penalised_model(groups, method, architecture)
    padded, short = batch_of(TOKENS[1:], DOCUMENTS[1:]), batch_of(TOKENS[1:, :5])

    found, expected = (results_by_token(model, batch) for batch in (padded, short))

    assert_all_close({name: results[:5] for name, results in found.items()}, expected)
    assert_all_close(observed(model, padded)[0].statistics, observed(model, short)[0].statistics)
    assert_all_close(gradients_of(model, padded), gradients_of(model, short))


@each_model
def test_only_real_tokens_are_counted(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    output, _ = observed(tiny_model(groups, method, architecture), PADDED)

    assert output.statistics["real_tokens"].item() == 14
    assert output.statistics["labelled_tokens"].item() == 12
    if "steps_count" in output.statistics:
        assert output.statistics["steps_count"].sum().item() == 14
        assert output.statistics["labelled_by_steps"].sum().item() == 12


@each_model
def test_padding_rows_of_the_vocabulary_get_no_probability(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    logits = observed(tiny_model(groups, method, architecture), batch_of(TOKENS))[1]["logits"]

    assert logits.shape[-1] == PADDED_VOCAB_SIZE
    assert (logits[..., VOCAB_SIZE:] == float("-inf")).all()
    assert torch.isfinite(logits[..., :VOCAB_SIZE]).all()


@pytest.mark.parametrize("method", [Method.PONDERLM, Method.ADAPONDERLM, Method.PONDERLM2, Method.PONDERLM3])
def test_padding_rows_of_the_vocabulary_have_no_share_in_mixtures(
    groups: ParallelGroups, method: Method
) -> None:
    model = tiny_model(groups, method, ponder={"mixture": "softmax"})
    before = observed(model, batch_of(TOKENS))[1]["logits"]

    with torch.no_grad():
        model.embedding.word_embeddings.weight[VOCAB_SIZE:] = 1e3
        model.output_layer.weight[VOCAB_SIZE:] = 1e3

    assert torch.equal(observed(model, batch_of(TOKENS))[1]["logits"], before)
