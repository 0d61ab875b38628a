"""Process groups of parallel layouts, and that a layout does not change what Megatron's own GPT learns."""

import pytest
import torch
import torch.distributed

from megatron_ext.parallel.groups import ParallelGroups, destroy_groups, initialize_groups
from tests.support.ranks import SharedRanks, run_alone
from tests.support.tiny_gpt import TinyGpt

pytestmark = pytest.mark.multiprocess

Losses = list[tuple[float, float]]
Seen = tuple[dict[str, object], Losses]


def _try_layout(tensor: int) -> Seen:
    run = TinyGpt(tensor=tensor)
    seen = _describe(run.groups)
    losses = run.train(3)
    destroy_groups()
    return seen, losses


def _describe(groups: ParallelGroups) -> dict[str, object]:
    members = torch.distributed.get_process_group_ranks
    return {
        "tp": (groups.tp_rank, groups.tp_size, members(groups.tp)),
        "dp": (groups.dp_rank, groups.dp_size, members(groups.dp)),
        "pp": (groups.pp_rank, groups.pp_size, members(groups.pp)),
        "mp": members(groups.mp),
        "stages": (groups.is_first_stage, groups.is_last_stage),
    }


def _try_layouts() -> dict[str, Seen]:
    return {"tp2": _try_layout(2), "dp2": _try_layout(1)}


@pytest.fixture(scope="module")
def two_ranks(ranks: SharedRanks) -> list[dict[str, Seen]]:
    return ranks.run(_try_layouts, 2)


def test_tensor_parallel_ranks_share_one_model(two_ranks: list[dict[str, Seen]]) -> None:
    for rank, seen in enumerate(two_ranks):
        assert seen["tp2"][0] == {
            "tp": (rank, 2, [0, 1]),
            "dp": (0, 1, [rank]),
            "pp": (0, 1, [rank]),
            "mp": [0, 1],
            "stages": (True, True),
        }


def test_ranks_left_over_are_data_parallel(two_ranks: list[dict[str, Seen]]) -> None:
    for rank, seen in enumerate(two_ranks):
        assert seen["dp2"][0]["dp"] == (rank, 2, [0, 1])
        assert seen["dp2"][0]["tp"] == (0, 1, [rank])


@pytest.mark.parametrize("layout", ["tp2", "dp2"])
def test_two_ranks_learn_what_one_learns(two_ranks: list[dict[str, Seen]], layout: str) -> None:
    one = torch.tensor(run_alone(_try_layout, 1)[1])
    for seen in two_ranks:
        torch.testing.assert_close(torch.tensor(seen[layout][1]), one, rtol=1e-5, atol=0)


def test_a_number_of_ranks_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2 \* 1 \* 1\).*\b1\b"):
        run_alone(lambda: initialize_groups(tensor=2))
