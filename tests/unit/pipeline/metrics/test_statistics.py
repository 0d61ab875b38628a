import pytest
import torch
from torch import Tensor

from pipeline.metrics.statistics import StatisticsAccumulator

CPU = torch.device("cpu")


def random_statistics(layout: dict[str, int], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(length, generator=generator) for name, length in layout.items()}


def test_accumulated_sums_equal_a_plain_sum() -> None:
    layout = {"real_tokens": 1, "nll": 1, "residual_change": 2, "steps_count": 4, "tail_mass": 4}
    batches = [random_statistics(layout, seed) for seed in range(5)]
    accumulator = StatisticsAccumulator(layout, device=CPU)
    for batch in batches:
        accumulator.add(batch)
    sums = accumulator.reduce()
    for name in layout:
        expected = torch.stack([batch[name].double() for batch in batches]).sum(0)
        torch.testing.assert_close(torch.tensor(sums[name], dtype=torch.float64), expected)


def test_reduce_starts_again_from_zero() -> None:
    accumulator = StatisticsAccumulator({"nll": 2}, device=CPU)
    accumulator.add({"nll": torch.tensor([1.0, 2.0])})
    assert accumulator.reduce() == {"nll": [1.0, 2.0]}
    assert accumulator.reduce() == {"nll": [0.0, 0.0]}


def test_counts_beyond_float32_stay_exact() -> None:
    accumulator = StatisticsAccumulator({"real_tokens": 1}, device=CPU)
    accumulator.add({"real_tokens": torch.tensor([2.0**24])})
    accumulator.add({"real_tokens": torch.tensor([1.0])})
    assert accumulator.reduce() == {"real_tokens": [2.0**24 + 1]}


def test_statistics_without_entries_are_allowed() -> None:
    accumulator = StatisticsAccumulator({"nll": 1, "residual_change": 0}, device=CPU)
    accumulator.add({"nll": torch.ones(1), "residual_change": torch.zeros(0)})
    assert accumulator.reduce() == {"nll": [1.0], "residual_change": []}


def test_gradients_do_not_accumulate() -> None:
    accumulator = StatisticsAccumulator({"nll": 1}, device=CPU)
    weight = torch.ones(1, requires_grad=True)
    accumulator.add({"nll": 2 * weight})
    assert accumulator.reduce() == {"nll": [2.0]}


def test_what_a_forward_with_fewer_steps_lacks_counts_as_zero() -> None:
    accumulator = StatisticsAccumulator({"nll": 1, "steps_count": 3, "gate_mean": 2}, device=CPU)

    accumulator.add({"nll": torch.ones(1), "steps_count": torch.ones(2)}, is_limited=True)
    accumulator.add(
        {name: torch.ones(size) for name, size in (("nll", 1), ("steps_count", 3), ("gate_mean", 2))}
    )

    assert accumulator.reduce() == {"nll": [2.0], "steps_count": [2.0, 2.0, 1.0], "gate_mean": [1.0, 1.0]}
    with pytest.raises(ValueError, match="steps_count"):
        accumulator.add({"nll": torch.ones(1), "steps_count": torch.ones(4)}, is_limited=True)


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        ({"nll": torch.ones(1)}, "steps_count"),
        ({"nll": torch.ones(1), "steps_count": torch.ones(3)}, r"steps_count.*\(4,\).*\(3,\)"),
    ],
)
def test_what_differs_from_the_layout_is_refused(statistics: dict[str, Tensor], message: str) -> None:
    accumulator = StatisticsAccumulator({"nll": 1, "steps_count": 4}, device=CPU)
    with pytest.raises(ValueError, match=message):
        accumulator.add(statistics)
