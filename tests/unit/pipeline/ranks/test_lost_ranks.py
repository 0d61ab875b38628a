"""What a rank finds out about the others; jobs that lose a rank are in tests/multiprocess."""

import threading
from datetime import timedelta

import pytest
import torch.distributed

from pipeline.ranks.lost_ranks import find_lost_ranks, naming_lost_ranks

WAIT_SECONDS = 2.0


def find_together(*present: int, world_size: int) -> dict[int, list[int]]:
    """Return what each of the ranks that are present finds, all at the same time."""
    store = torch.distributed.HashStore()
    found: dict[int, list[int]] = {}

    def report(rank: int) -> None:
        found[rank] = find_lost_ranks(store, rank, world_size, wait_seconds=WAIT_SECONDS)

    threads = [threading.Thread(target=report, args=(rank,)) for rank in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_no_rank_is_lost_where_all_report() -> None:
    assert find_together(0, 1, 2, world_size=3) == {0: [], 1: [], 2: []}


def test_every_rank_names_those_that_do_not_report() -> None:
    assert find_together(0, 3, world_size=4) == {0: [1, 2], 3: [1, 2]}


def test_a_store_that_cannot_be_reached_is_lost_with_rank_0() -> None:
    host = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=WAIT_SECONDS)
    )
    client = torch.distributed.TCPStore(
        "127.0.0.1", host.port, is_master=False, timeout=timedelta(seconds=WAIT_SECONDS)
    )
    del host

    assert find_lost_ranks(client, 2, 3, wait_seconds=WAIT_SECONDS) == [0]


def test_errors_that_are_not_of_a_collective_pass_unchanged() -> None:
    error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError) as raised, naming_lost_ranks():
        raise error
    assert raised.value is error
