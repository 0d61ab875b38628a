from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.blend import BlendedSource, BlendOrder, share_units
from pipeline.data.order import SampleOrder

WEIGHTS = (0.6, 0.3, 0.1)
LENGTHS = (500, 70, 900)


def blend(*, max_epochs: tuple[float | None, ...] = (None,) * 3, shuffled: bool = True) -> BlendOrder:
    sources = [
        BlendedSource(name=f"source {number}", num_samples=length, weight=weight, max_epochs=limit)
        for number, (length, weight, limit) in enumerate(zip(LENGTHS, WEIGHTS, max_epochs, strict=True))
    ]
    return BlendOrder(sources, seed=7, shuffled=shuffled)


def source_of(indices: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(LENGTHS), indices, side="right")


def test_a_blend_of_one_source_is_its_plain_order() -> None:
    alone = BlendOrder([BlendedSource(name="a", num_samples=97, weight=3.0)], seed=7, shuffled=True)
    plain = SampleOrder(num_samples=97, seed=7, shuffled=True)
    assert alone.indices(0, 9000).tolist() == plain.indices(0, 9000).tolist()
    assert alone.indices(5000, 8).tolist() == plain.indices(5000, 8).tolist()


@settings(max_examples=60, deadline=None)
@given(consumed=st.integers(0, 20_000), count=st.integers(0, 300), capped=st.booleans())
def test_any_position_is_reached_without_those_before_it(consumed: int, count: int, capped: bool) -> None:
    order = blend(max_epochs=(None, 2.0, 0.5) if capped else (None,) * 3)
    whole = WHOLE_CAPPED if capped else WHOLE
    assert order.indices(consumed, count).tolist() == whole[consumed : consumed + count].tolist()
    counts = Counter(source_of(whole[:consumed]).tolist())
    assert list(order.samples_by_source(consumed).values()) == [counts[number] for number in range(3)]


WHOLE = blend().indices(0, 20_300)
WHOLE_CAPPED = blend(max_epochs=(None, 2.0, 0.5)).indices(0, 20_300)


def test_shares_are_those_of_the_weights_everywhere() -> None:
    order = blend()
    for start in (0, 40_960, 10**12):
        shares = np.bincount(source_of(order.indices(start, 4096)), minlength=3) / 4096
        assert shares == pytest.approx(WEIGHTS, abs=1e-3)
        # A global batch has about its share: the standard deviation of 256 draws is below 0.031.
        in_batch = np.bincount(source_of(order.indices(start, 256)), minlength=3) / 256
        assert in_batch == pytest.approx(WEIGHTS, abs=0.12)


def test_every_source_goes_through_its_samples_epoch_by_epoch() -> None:
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(LENGTHS)])
    for number, length in enumerate(LENGTHS):
        own = WHOLE[source_of(WHOLE) == number] - first[number]
        for epoch in range(len(own) // length):
            assert sorted(own[epoch * length : (epoch + 1) * length]) == list(range(length))
    sequential = blend(shuffled=False).indices(0, 3000)
    middle = sequential[source_of(sequential) == 1] - LENGTHS[0]
    assert middle.tolist() == [position % 70 for position in range(len(middle))]


def test_a_source_is_not_used_after_its_last_epoch() -> None:
    counts = Counter(source_of(WHOLE_CAPPED).tolist())
    assert counts[1] == 140
    assert counts[2] == 450
    end = int(np.flatnonzero(source_of(WHOLE_CAPPED) == 1)[-1])
    # The weights of the others keep their ratio.
    after = np.bincount(source_of(WHOLE_CAPPED[end + 1 : end + 2000]), minlength=3)
    assert after[0] / after.sum() == pytest.approx(0.6 / 0.7, abs=0.03)


def test_a_blend_that_ends_has_every_allowed_sample_and_no_more() -> None:
    order = blend(max_epochs=(1.0, 2.0, 0.5))
    assert order.capacity == 500 + 140 + 450
    indices = order.indices(0, order.capacity)
    assert np.bincount(source_of(indices)).tolist() == [500, 140, 450]
    assert sorted(indices[indices < 500]) == list(range(500))
    assert set(order.samples_by_source(order.capacity).values()) == {500, 140, 450}
    with pytest.raises(ValueError, match=r"1090.*1091"):
        order.indices(1090, 1)


def test_the_blend_is_a_pure_function() -> None:
    # fixed values: a change of the rule would change the data of every run
    assert WHOLE[:6].tolist() == [541, 1309, 514, 523, 397, 545]
    other = BlendOrder(blend().sources, seed=8, shuffled=True).indices(0, 100)
    assert source_of(other).tolist() != source_of(WHOLE[:100]).tolist()


@pytest.mark.parametrize("weights", [(1.0,), (1, 1, 1), (0.7, 0.2, 0.1), (1e9, 1.0), (0.0, 2.0, 3.0)])
def test_all_units_are_divided(weights: tuple[float, ...]) -> None:
    units = share_units(weights)
    assert sum(units) == 2**20
    for share, weight in zip(units, weights, strict=True):
        assert (share > 0) == (weight > 0)
        assert share == pytest.approx(weight / sum(weights) * 2**20, abs=len(weights))
