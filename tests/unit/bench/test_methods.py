"""Steps of several methods take turns in one process."""

import pytest

from tests.bench.methods import time_methods
from tests.bench.step import StepSizes

TINY = StepSizes(hidden_size=64, num_layers=1, vocab_size=64, seq_length=16, micro_batch_size=1)


def test_methods_are_compared_with_the_first_round_by_round() -> None:
    few, many = time_methods(["vanilla", "ponderlm3 K1 J3"], "fp32", TINY, rounds=2)

    assert (few.case, many.case) == ("vanilla", "ponderlm3 K1 J3")
    assert few.relative == [1.0, 1.0]
    rounds = zip(few.seconds, many.seconds, strict=True)
    assert many.relative == pytest.approx([other / own for own, other in rounds])
    assert min(few.median_seconds, many.median_seconds) > 0
