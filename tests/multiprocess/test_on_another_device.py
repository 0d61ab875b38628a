"""Two ranks on a device that is not the CPU, with the rules of NCCL; more with `--away`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor

from megatron_ext.device import HOST_BACKEND, device
from megatron_ext.parallel.groups import destroy_groups
from tests.support.away import NEEDED_WAITS, DevicesError, away_device
from tests.support.away_groups import AWAY_BACKEND
from tests.support.away_steps import trained_twice
from tests.support.layout_steps import groups_of
from tests.support.layouts import LAYOUTS
from tests.support.ranks import SharedRanks

pytestmark = pytest.mark.multiprocess

LAYOUTS_OF_TWO = ("TP2", "TP2+SP", "PP2", "DP2", "CP2")
USUAL = {("ponderlm3, llama", "TP2+SP"), ("adaponderlm, llama", "PP2")}
# Without tied embeddings on two stages: Megatron moves the data of the copy in its constructor, which a
# tensor of this device, unlike one of CUDA, does not allow.
MORE = {
    *(("ponderlm3, llama", layout) for layout in LAYOUTS_OF_TWO),
    *(("ponderlm3, neox tied", layout) for layout in ("TP2", "DP2")),
    *(("adaponderlm, llama", layout) for layout in ("TP2", "PP2", "CP2")),
    ("ponderlm2, llama tied top-k", "TP2"),
    ("adaptive_latent_cot, llama", "TP2+SP"),
}


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        case if case in USUAL else pytest.param(*case, marks=pytest.mark.away)
        for case in sorted(MORE | USUAL, key=lambda case: case[::-1])
    ],
)
def test_steps_of_two_ranks_with_a_checkpoint_between_are_those_of_the_cpu_to_the_bit(
    ranks: SharedRanks, tmp_path: Path, name: str, layout: str
) -> None:
    for expected, found in ranks.run(trained_twice, 2, name, layout, tmp_path):
        assert found.differences(expected) == []
        assert sorted(place.rsplit(":", 1)[0] for _, place in found.waits) == sorted(NEEDED_WAITS)
        assert found.collectives > expected.collectives == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a collective of both ranks has done.

    Attributes:
        value: what it has given; None where it was refused.
        waits: of the host for the device.
    """

    value: Any
    waits: int


def answers() -> dict[str, Answer]:
    """Try collectives of tensors of both places over groups of each backend."""
    rank = torch.distributed.get_rank()
    found: dict[str, Answer] = {}
    with away_device() as away:
        groups = groups_of(LAYOUTS["TP2"])
        of_host = torch.distributed.new_group(backend=HOST_BACKEND)
        of_both = torch.distributed.new_group()
        by_name = {"device": groups.tp, "host": of_host, "both": of_both, "all ranks": None}
        for name, group in by_name.items():
            for place in (device(), torch.device("cpu")):
                key = f"{'device' if place == device() else 'host'} over {name}"
                found[key] = _sum(torch.tensor([rank + 1.0]).to(place), group)
            away.waits.clear()
            objects: list[Any] = [None, None]
            torch.distributed.all_gather_object(objects, rank, group=group)
            found[f"objects over {name}"] = Answer(value=objects, waits=away.waits.total())
        for group in (of_host, of_both):
            torch.distributed.destroy_process_group(group)
        destroy_groups()
    return found


def _sum(tensor: Tensor, group: Any) -> Answer:
    try:
        torch.distributed.all_reduce(tensor, group=group)
    except DevicesError:
        return Answer(value=None, waits=0)
    return Answer(value=tensor.tolist(), waits=0)


def test_groups_take_what_their_backend_takes_on_cuda(ranks: SharedRanks) -> None:
    taken = Answer(value=[3.0], waits=0)
    refused = Answer(value=None, waits=0)
    for found in ranks.run(answers, 2):
        assert found == {
            "device over device": taken,
            "host over device": refused,
            "objects over device": Answer(value=[0, 1], waits=1),
            "device over host": refused,
            "host over host": taken,
            "objects over host": Answer(value=[0, 1], waits=0),
            "device over both": taken,
            "host over both": taken,
            "objects over both": Answer(value=[0, 1], waits=0),
            "device over all ranks": taken,
            "host over all ranks": taken,
            "objects over all ranks": Answer(value=[0, 1], waits=0),
        }


def backends() -> tuple[dict[str, str], set[str]]:
    """Return the backends of the groups of a layout, and the names of the groups that remain without it."""
    before = set(torch.distributed.distributed_c10d._world.pg_names.values())
    with away_device() as away:
        groups_of(LAYOUTS["TP2"])
        made = dict(away.groups.backends)
        destroy_groups()
    return made, set(torch.distributed.distributed_c10d._world.pg_names.values()) - before


def test_a_layout_makes_no_group_for_tensors_of_the_host(ranks: SharedRanks) -> None:
    for made, remaining in ranks.run(backends, 2):
        assert len(made) > 10
        assert set(made.values()) == {AWAY_BACKEND}
        assert remaining == set()
