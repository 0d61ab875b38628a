import pytest
import torch
import torch.distributed as dist

from pipeline.metrics.statistics import StatisticsAccumulator
from tests.support.ranks import SharedRanks


def sums_of_rank() -> dict[str, list[float]]:
    accumulator = StatisticsAccumulator({"nll": 1, "steps_count": 2}, device=torch.device("cpu"))
    rank = dist.get_rank()
    accumulator.add({"nll": torch.tensor([rank + 1.0]), "steps_count": torch.tensor([1.0, 10.0 * rank])})
    return accumulator.reduce(dist.group.WORLD)


@pytest.mark.multiprocess
def test_two_ranks_see_the_sums_of_both(ranks: SharedRanks) -> None:
    for sums in ranks.run(sums_of_rank, 2):
        assert sums == {"nll": [3.0], "steps_count": [2.0, 10.0]}
