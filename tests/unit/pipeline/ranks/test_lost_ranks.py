"""What a rank finds out about the others; whole jobs that lose a rank are in tests/multiprocess."""

import threading
from datetime import timedelta

import pytest
import torch.distributed

from pipeline.ranks.lost_ranks import naming_lost_ranks, ranks_that_do_not_answer

WAIT_SECONDS = 2.0


def call_roll(*present: int, world_size: int) -> dict[int, list[int]]:
    """What each of the ranks that are present finds, all at the same time."""
    store = torch.distributed.HashStore()
    found: dict[int, list[int]] = {}

    def report(rank: int) -> None:
        found[rank] = ranks_that_do_not_answer(store, rank, world_size, wait_seconds=WAIT_SECONDS)

    threads = [threading.Thread(target=report, args=(rank,)) for rank in present]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_nobody_is_missing_where_all_report() -> None:
    assert call_roll(0, 1, 2, world_size=3) == {0: [], 1: [], 2: []}


def test_every_rank_names_those_that_do_not_report() -> None:
    assert call_roll(0, 3, world_size=4) == {0: [1, 2], 3: [1, 2]}


def test_a_store_that_cannot_be_reached_is_lost_with_rank_0() -> None:
    host = torch.distributed.TCPStore(
        "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=WAIT_SECONDS)
    )
    client = torch.distributed.TCPStore(
        "127.0.0.1", host.port, is_master=False, timeout=timedelta(seconds=WAIT_SECONDS)
    )
    del host

    assert ranks_that_do_not_answer(client, 2, 3, wait_seconds=WAIT_SECONDS) == [0]


def test_errors_that_are_not_of_a_collective_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match=r"^out of memory$"), naming_lost_ranks():
        raise RuntimeError("out of memory")
