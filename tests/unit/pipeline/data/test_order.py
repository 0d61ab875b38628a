import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.order import SampleOrder, global_batch_indices


@settings(max_examples=100, deadline=None)
@given(num_samples=st.integers(1, 3000), seed=st.integers(0, 2**63), epoch=st.integers(0, 1000))
def test_every_epoch_visits_every_sample_once(num_samples: int, seed: int, epoch: int) -> None:
    order = SampleOrder(num_samples=num_samples, seed=seed, shuffled=True)
    indices = order.indices(epoch * num_samples, num_samples)
    assert sorted(indices.tolist()) == list(range(num_samples))


def test_one_sample_at_a_time_is_the_same_order() -> None:
    order = SampleOrder(num_samples=97, seed=3, shuffled=True)
    assert [order.index(consumed) for consumed in range(250)] == order.indices(0, 250).tolist()


def test_the_order_is_a_pure_function() -> None:
    # fixed values: a change of the rule would change the data of every run
    across_epochs = SampleOrder(num_samples=1000, seed=1234, shuffled=True).indices(998, 5)
    assert across_epochs.tolist() == [514, 224, 45, 370, 306]
    first, second = (SampleOrder(num_samples=10**12, seed=8, shuffled=True) for _ in range(2))
    assert first.index(123_456_789_012) == second.index(123_456_789_012)


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    orders = [
        tuple(SampleOrder(num_samples=500, seed=seed, shuffled=True).indices(epoch * 500, 500).tolist())
        for seed in (1, 2)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4


def test_neighbours_are_torn_apart() -> None:
    num_samples = 10_000
    indices = SampleOrder(num_samples=num_samples, seed=1, shuffled=True).indices(0, num_samples)
    correlation = np.corrcoef(np.arange(num_samples), indices)[0, 1]
    neighbour_correlation = np.corrcoef(indices[:-1], indices[1:])[0, 1]
    # of random permutations, 1 in 15,000 goes beyond 4 standard deviations of 1 / sqrt(n)
    assert abs(correlation) < 0.04
    assert abs(neighbour_correlation) < 0.04
    assert (np.abs(np.diff(indices)) == 1).sum() < 15


def test_places_are_uniform_over_epochs() -> None:
    order = SampleOrder(num_samples=8, seed=0, shuffled=True)
    counts = np.zeros((8, 8))
    for epoch in range(800):
        counts[np.arange(8), order.indices(epoch * 8, 8)] += 1
    # expectation 100, standard deviation below 10
    assert np.abs(counts - 100).max() < 45


def test_sequential_order_counts_up_and_starts_over() -> None:
    order = SampleOrder(num_samples=5, seed=1, shuffled=False)
    assert order.indices(3, 8).tolist() == [3, 4, 0, 1, 2, 3, 4, 0]


def test_global_batches_follow_each_other_without_gap_or_overlap() -> None:
    order = SampleOrder(num_samples=30, seed=1, shuffled=True)
    batches = [global_batch_indices(order, consumed, 4) for consumed in range(0, 60, 4)]
    flat = [index for batch in batches for index in batch]
    assert flat == order.indices(0, 60).tolist()
    assert sorted(flat[:30]) == sorted(flat[30:]) == list(range(30))


def test_an_order_of_nothing_and_a_negative_position_are_refused() -> None:
    with pytest.raises(ValueError, match="num_samples"):
        SampleOrder(num_samples=0, seed=1, shuffled=True)
    with pytest.raises(ValueError, match="-"):
        SampleOrder(num_samples=3, seed=1, shuffled=True).index(-1)
