import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed

from pipeline.ranks.flight_recorder import collectives_in_flight, read_recorder
from pipeline.ranks.watchdog import (
    RankReport,
    call_under_way,
    describe_fault,
    ranks_at_fault,
    waits_for_others,
)
from pipeline.shared.bounded import wait_until
from tests.support.ranks import run_alone


def report(*, waits: bool) -> RankReport:
    return RankReport(doing="iteration 7", waits=waits, place="layers.py:12 in forward")


def test_the_rank_that_does_not_wait_is_at_fault_and_its_place_is_named() -> None:
    reports = {0: report(waits=True), 1: report(waits=False), 2: report(waits=True)}
    assert ranks_at_fault(reports, 3) == [1]
    assert "rank 1 (iteration 7, at layers.py:12 in forward)" in describe_fault(reports, 3)


def test_ranks_without_a_report_come_before_busy_ones() -> None:
    reports = {1: report(waits=False), 2: report(waits=True)}
    assert ranks_at_fault(reports, 4) == [0, 3]
    assert "[0, 3]" in describe_fault(reports, 4)


def test_nobody_is_at_fault_where_all_wait_for_each_other() -> None:
    reports = {0: report(waits=True), 1: report(waits=True)}
    assert ranks_at_fault(reports, 2) == []
    assert "rank 0" not in describe_fault(reports, 2)


@contextmanager
def blocked(work: Callable[[Any], object]) -> Iterator[FrameType]:
    """Give the innermost frame of a thread that hangs inside of a function without a frame of its own."""
    lock, is_there = threading.Lock(), threading.Event()
    lock.acquire()
    # Like a tensor, it has methods that are written in C and wait.
    tensor = SimpleNamespace(tolist=lock.acquire, item=lock.acquire, exp=lock.acquire, is_there=is_there.set)
    thread = threading.Thread(target=work, args=(tensor,), daemon=True)
    thread.start()
    try:
        assert is_there.wait(5)

        def place() -> FrameType:
            return sys._current_frames()[thread.ident or 0]

        assert wait_until(lambda: call_under_way(place()) in ("tolist", "item", "exp"), seconds=5)
        yield place()
    finally:
        lock.release()
        thread.join(5)


def read_list(tensor: Any) -> object:
    tensor.is_there()
    return [float(value) for value in (tensor.tolist() and (1, 2))]


def read_number(tensor: Any) -> object:
    tensor.is_there()
    return 1.0 + (
        # The call spans lines, and others stand beside it.
        tensor.item()
    )


def compute(tensor: Any) -> object:
    tensor.is_there()
    return tensor.exp()


@pytest.mark.parametrize(
    ("work", "call", "waits"),
    [(read_list, "tolist", True), (read_number, "item", True), (compute, "exp", False)],
)
def test_a_rank_that_reads_a_tensor_of_its_device_waits_for_others(
    work: Callable[[Any], object], call: str, waits: bool
) -> None:
    with blocked(work) as frame:
        assert call_under_way(frame) == call
        assert waits_for_others(frame, asks_device=True) == waits
        # On a CPU there is nothing to wait for.
        assert not waits_for_others(frame, asks_device=False)


def test_collectives_that_have_not_ended_are_in_flight() -> None:
    entries = [
        {"profiling_name": "nccl:all_reduce", "state": "completed"},
        {"profiling_name": "nccl:all_gather", "state": "started"},
        {"profiling_name": "nccl:send", "state": "scheduled"},
    ]

    assert collectives_in_flight(entries) == ["nccl:all_gather", "nccl:send"]


def all_reduce_once() -> list[dict[str, Any]]:
    value = torch.ones(1)
    torch.distributed.all_reduce(value)
    return read_recorder("_dump_fr_trace_json")


def test_torch_records_collectives_as_they_are_read() -> None:
    # The recorder of gloo has the format of NCCL's.
    newest = run_alone(all_reduce_once)[-1]

    assert newest["profiling_name"] == "gloo:all_reduce"
    assert newest["state"] in ("scheduled", "started", "completed")
