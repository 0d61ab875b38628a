import pytest

from pipeline.report.scale import LinearScale, round_range, round_ticks, spread


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 400.0, [0.0, 100.0, 200.0, 300.0, 400.0]),
        (3.1, 6.9, [4.0, 5.0, 6.0]),
        (0.0, 0.003, [0.0, 0.001, 0.002, 0.003]),
    ],
)
def test_ticks_are_round_and_inside(low: float, high: float, ticks: list[float]) -> None:
    assert round_ticks(low, high) == pytest.approx(ticks)


def test_an_empty_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="must end above its start"):
        round_ticks(1.0, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(3.1, 6.9, (3.0, 7.0)), (0.0, 1.0, (0.0, 1.0)), (2.0, 2.0, (1.0, 3.0)), (0.0, 0.0, (-0.6, 0.6))],
)
def test_ranges_are_widened_to_round_ends(low: float, high: float, expected: tuple[float, float]) -> None:
    assert round_range(low, high) == pytest.approx(expected)


def test_scale_maps_ends_to_ends_and_a_point_to_the_middle() -> None:
    scale = LinearScale(low=2.0, high=4.0, start=100.0, end=0.0)
    assert (scale(2.0), scale(3.0), scale(4.0)) == (100.0, 50.0, 0.0)
    assert LinearScale(low=1.0, high=1.0, start=0.0, end=10.0)(1.0) == 5.0


def test_labels_are_moved_apart_in_their_order() -> None:
    assert spread([10.0, 10.0, 50.0], gap=15.0, low=0.0, high=100.0) == [10.0, 25.0, 50.0]
    assert spread([99.0, 98.0], gap=15.0, low=0.0, high=100.0) == [100.0, 85.0]
