"""The row that the pause token has in the embedding (definitions 4)."""

import torch

from megatron_ext.methods.pause import Pause
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method, PonderConfig
from tests.support.ponder_models import (
    VOCAB_SIZE,
    batch_of,
    gradients_of,
    observed,
    random_tokens,
    tiny_model,
)

BATCH = batch_of(random_tokens())


def test_every_token_is_followed_by_its_pauses() -> None:
    method = Pause(PonderConfig(method=Method.PAUSE, num_latent_thoughts=2, pause_token_id=9), 8)

    assert method.tokens_of_rows(torch.tensor([[1, 2], [3, 9]])).tolist() == [
        [1, 9, 9, 2, 9, 9],
        [3, 9, 9, 9, 9, 9],
    ]


def test_a_reserved_row_is_learned_and_never_predicted(groups: ParallelGroups) -> None:
    model = tiny_model(groups, "pause")
    assert model.config.ponder.pause_token_id == VOCAB_SIZE
    assert model.config.embedding_rows == VOCAB_SIZE + 1

    gradients = gradients_of(model, BATCH)

    embedding = gradients["embedding.word_embeddings.weight"]
    assert float(embedding[VOCAB_SIZE].abs().max()) > 1e-6
    assert (embedding[VOCAB_SIZE + 1 :] == 0).all()
    assert (gradients["output_layer.weight"][VOCAB_SIZE:] == 0).all()
    assert (observed(model, BATCH)[1]["logits"][..., VOCAB_SIZE] == float("-inf")).all()


def test_only_the_reserved_row_defines_a_pause(groups: ParallelGroups) -> None:
    reserved = tiny_model(groups, "pause")
    # Token 42 has the embedding of the pause in the second model.
    existing = tiny_model(groups, "pause", ponder={"pause_token_id": 42})
    with torch.no_grad():
        existing.load_state_dict(reserved.state_dict())
        weights = existing.embedding.word_embeddings.weight
        weights[42] = weights[VOCAB_SIZE]
    batch = batch_of(random_tokens() % 42)

    logits = [observed(model, batch)[1]["logits"] for model in (reserved, existing)]

    assert torch.equal(*logits)
