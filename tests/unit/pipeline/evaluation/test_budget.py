"""Budgets, and the thresholds that spend them on recorded scores."""

import math

import numpy as np
import pytest

from megatron_ext.ponder.config import Method
from pipeline.cost.flops import FlopsAccount
from pipeline.cost.shape import ModelShape
from pipeline.evaluation.budget import Budget, RecordedScores, spending
from pipeline.metrics.ponder_scalars import mean_steps_of


@pytest.mark.parametrize(
    ("text", "budget"),
    [("1.5", Budget(mean_steps=1.5)), ("0", Budget(mean_steps=0.0)), ("60%", Budget(flops_share=0.6))],
)
def test_a_budget_is_steps_or_a_share(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget
    assert str(budget) == text


@pytest.mark.parametrize("text", ["", "much", "-1", "0%", "101%", "nan", "inf", "%"])
def test_anything_else_is_no_budget(text: str) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget.parse(text)


# Three tokens of two steps: 0.9 and 0.5, 0.7 and 0.2, 0.4 and 0.1.
SCORES = np.array([[0.9, 0.5], [0.7, 0.2], [0.4, 0.1]])


@pytest.mark.parametrize(
    ("threshold", "counts"),
    [(0.0, [0, 0, 3]), (0.2, [0, 1, 2]), (0.21, [0, 2, 1]), (0.7, [1, 2, 0]), (2.0, [3, 0, 0])],
)
def test_a_token_takes_the_steps_whose_score_reaches_the_threshold(
    threshold: float, counts: list[int]
) -> None:
    assert RecordedScores(SCORES).steps_count(threshold) == counts


@pytest.mark.parametrize(
    ("steps", "low", "high"),
    [(6, -math.inf, 0.1), (5, 0.1, 0.2), (4.5, 0.2, 0.4), (1, 0.7, 0.9), (0, 0.9, 1)],
)
def test_the_smallest_threshold_is_found_between_two_scores(steps: float, low: float, high: float) -> None:
    def fits(counts: object) -> bool:
        return 3 * mean_steps_of(counts) <= steps  # type: ignore[arg-type]

    threshold = RecordedScores(SCORES).smallest_threshold(fits)

    assert threshold is not None
    assert low < threshold < high


def test_the_search_agrees_with_trying_every_threshold() -> None:
    drawn = np.random.default_rng(1).random((50, 3)).round(2).astype(np.float32)
    scores = np.minimum.accumulate(drawn, axis=1)
    recorded = RecordedScores(scores)
    for budget in np.linspace(0, 3, 13):
        threshold = recorded.smallest_threshold(lambda counts, b=budget: mean_steps_of(counts) < b + 1e-9)
        assert threshold is not None
        steps = (scores >= threshold).sum() / 50
        assert steps <= budget
        more = [(scores >= value).sum() / 50 for value in [0.0, *np.unique(scores)]]
        assert not [other for other in more if steps < other <= budget]


def test_a_step_that_is_always_taken_is_a_least_budget() -> None:
    always = RecordedScores(np.array([[math.inf, 0.3], [math.inf, 0.1]]))

    assert always.smallest_threshold(lambda counts: mean_steps_of(counts) <= 0.5) is None
    one_each = always.smallest_threshold(lambda counts: mean_steps_of(counts) <= 1)
    assert one_each is not None
    assert always.steps_count(one_each) == [0, 2, 0]


@pytest.mark.parametrize("method", [Method.PONDERLM3, Method.ADAPONDERLM])
def test_a_share_is_one_of_the_operations_of_all_steps(method: Method) -> None:
    shape = ModelShape(
        architecture="llama",
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        num_query_groups=4,
        kv_channels=8,
        vocab_size=50,
        padded_vocab_size=56,
        seq_length=16,
    )
    account = FlopsAccount(shape=shape, method=method, num_latent_thoughts=2)

    everything = spending([0, 0, 7], account, account)
    half = spending([2, 3, 1], account, account)

    assert everything.flops_share == 1
    assert everything.fits(Budget(flops_share=1.0))
    assert half.mean_steps == pytest.approx(5 / 6)
    assert half.flops_per_token == account.inference_per_token(half.mean_steps, shares=[2 / 6, 3 / 6, 1 / 6])
    assert half.fits(Budget(mean_steps=0.84))
    assert not half.fits(Budget(mean_steps=0.83))
    assert not half.fits(Budget(flops_share=half.flops_share * 0.99))
