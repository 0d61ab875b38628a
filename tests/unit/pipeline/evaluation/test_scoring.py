"""Scores of texts, against the sequential oracle in float64."""

import pytest
import torch

from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method
from megatron_ext.ponder.decode.sweeps import Sweeps
from pipeline.evaluation.scoring import TextToScore, score_texts
from tests.support.ponder_models import each_method, oracle_results, random_tokens, tiny_model


@each_method
@pytest.mark.parametrize("sweeps", [None, Sweeps(tolerance=1e-12)])
def test_a_text_is_scored_as_by_the_oracle(
    groups: ParallelGroups, method: Method, sweeps: Sweeps | None
) -> None:
    model = tiny_model(groups, method)
    model.eval()
    texts = [random_tokens(1, length, seed=length)[0].tolist() for length in (5, 2, 7)]
    num_targets = (4, 1, 3)
    with torch.no_grad():
        expected = [oracle_results(model, text[:-1]) for text in texts]
    # The second text ends with what the model finds likeliest.
    texts[1][-1] = int(expected[1][-1].logits.argmax())

    found = score_texts(
        model,
        [TextToScore(tokens=text, num_targets=n) for text, n in zip(texts, num_targets, strict=True)],
        batch_size=2,
        sweeps=sweeps,
    )

    for scored, text, results, n in zip(found, texts, expected, num_targets, strict=True):
        logits = torch.stack([one.logits for one in results])[-n:]
        targets = torch.tensor(text[-n:])
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        assert scored.log_likelihood == pytest.approx(-float(loss), abs=1e-8)
        assert scored.is_greedy == bool((logits.argmax(dim=-1) == targets).all())
        assert scored.num_tokens == len(text) - 1
        assert scored.num_steps == sum(one.steps for one in results)
    assert [scored.is_greedy for scored in found] == [False, True, False]


def test_a_text_of_nothing_but_targets_is_refused() -> None:
    with pytest.raises(ValueError, match="3"):
        TextToScore(tokens=[1, 2, 3], num_targets=3)
