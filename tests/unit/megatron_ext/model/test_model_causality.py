"""No token sees a later one, in any pass of any method."""

import pytest
import torch

from megatron_ext.model.config import Architecture
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, Mixture
from tests.support.ponder_models import (
    VOCAB_SIZE,
    batch_of,
    changed,
    each_model,
    observed,
    random_tokens,
    results_by_token,
    tiny_model,
)

TOKENS = random_tokens(length=9)


@each_model
def test_later_tokens_do_not_change_earlier_ones(
    groups: ParallelGroups, method: Method, architecture: Architecture
) -> None:
    model = tiny_model(groups, method, architecture, dtype=torch.float32)
    before = results_by_token(model, batch_of(TOKENS))

    for start in (1, 5, 8):
        after = results_by_token(model, batch_of(changed(TOKENS, slice(start, None))))

        for name, results in before.items():
            assert torch.equal(after[name][:start], results[:start]), name
            # Every slot of the changed token changes, in both sequences.
            moved = (after[name][start] != results[start])[..., :VOCAB_SIZE].any(dim=-1)
            assert moved.all(), name


@pytest.mark.parametrize("mixture", Mixture)
def test_pruning_does_not_look_ahead_either(groups: ParallelGroups, mixture: Mixture) -> None:
    model = tiny_model(groups, "ponderlm3", ponder={"mixture": mixture, "mixture_top_k": 7})

    before, after = (
        observed(model, batch_of(tokens), prune=True)[1]["logits"]
        for tokens in (TOKENS, changed(TOKENS, slice(5, None)))
    )

    assert torch.equal(before[:5], after[:5])
    assert not torch.equal(before[5:], after[5:])
