import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from pipeline.data.batches import BatchShare, TrainingBatches
from pipeline.data.dataset import TokenDataset
from pipeline.data.prefetch import CLOSE_SECONDS, Ahead, PrefetchedBatches
from pipeline.metrics.data_hash import combine_digests, row_digests
from pipeline.ranks.signals import StopFlag, StopRequest
from pipeline.shared.bounded import wait_until
from pipeline.shared.errors import DataError
from tests.unit.pipeline.data.test_batches import build_training

GLOBAL_BATCH = 8
FIELDS = ("tokens", "labels", "position_ids", "document_ids")


@contextmanager
def ahead(
    make: Callable[[int], object], *, budget: int = 2, count: int = 1000, timeout_seconds: float = 20
) -> Iterator[Ahead[object]]:
    reader = Ahead(make, range(count), budget=budget, timeout_seconds=timeout_seconds)
    try:
        yield reader
    finally:
        reader.close()


@contextmanager
def prefetched(batches: TrainingBatches, *, stop: int, num_batches: int) -> Iterator[PrefetchedBatches]:
    reader = PrefetchedBatches(batches, stop=stop, num_batches=num_batches, timeout_seconds=20)
    try:
        yield reader
    finally:
        reader.close()


class Counter:
    """Makes numbers and remembers how many, and how many at the most were not taken."""

    def __init__(self) -> None:
        self.num_begun = 0
        self.num_taken = 0
        self.most_held = 0

    def make(self, position: int) -> int:
        self.num_begun += 1
        self.most_held = max(self.most_held, self.num_begun - self.num_taken)
        return position


def assert_same(left: BatchShare, right: BatchShare) -> None:
    for ours, theirs in zip(left.micro_batches, right.micro_batches, strict=True):
        for field in FIELDS:
            assert torch.equal(getattr(ours, field), getattr(theirs, field))
    assert combine_digests([row_digests(left.rows)]) == combine_digests([row_digests(right.rows)])


@pytest.mark.parametrize("num_batches", [0, 1, 2, 5])
def test_batches_read_ahead_are_those_read_in_turn(dataset: TokenDataset, num_batches: int) -> None:
    plain = build_training(dataset)
    stop = 40 * GLOBAL_BATCH
    with prefetched(build_training(dataset), stop=stop, num_batches=num_batches) as batches:
        for consumed in range(0, stop, GLOBAL_BATCH):
            assert_same(batches.read(consumed), plain.read(consumed))
        assert batches.order.samples_by_source(8) == {}


def test_a_run_may_resume_from_any_position(dataset: TokenDataset) -> None:
    plain = build_training(dataset)
    with prefetched(build_training(dataset), stop=100, num_batches=3) as batches:
        for consumed in (16, 24, 0, 8, 8, 96, 104, 4000):
            assert_same(batches.read(consumed), plain.read(consumed))


def test_no_more_is_held_than_the_budget() -> None:
    counter = Counter()
    with ahead(counter.make, budget=3) as reader:
        for position in range(20):
            # All that may be read ahead is, before the next is taken.
            assert wait_until(
                lambda: counter.num_begun - counter.num_taken == 3, seconds=20, poll_seconds=0.001
            )
            assert reader.take() == position
            counter.num_taken += 1
        time.sleep(0.02)
    # A reader may begin an item between the taking of another and its counting here.
    assert counter.num_begun <= counter.num_taken + 3
    assert counter.most_held <= 4


def test_the_item_that_is_being_made_counts() -> None:
    may_go_on = threading.Event()
    counter = Counter()

    def make(position: int) -> int:
        counter.make(position)
        if position >= 1:
            may_go_on.wait(20)
        return position

    with ahead(make, budget=2) as reader:
        assert wait_until(lambda: counter.num_begun == 2, seconds=20, poll_seconds=0.001)
        time.sleep(0.02)
        assert counter.num_begun == 2
        assert reader.is_ready()
        assert reader.take() == 0
        assert not reader.is_ready()
        may_go_on.set()


def test_nothing_is_read_after_the_end_of_the_run(dataset: TokenDataset) -> None:
    plain = build_training(dataset)
    read: list[int] = []

    class Recorded(TrainingBatches):
        def read(self, consumed_samples: int) -> BatchShare:
            read.append(consumed_samples)
            return super().read(consumed_samples)

    recorded = Recorded(dataset, plain.order, layout=plain.layout, packing=plain.packing)
    with prefetched(recorded, stop=24, num_batches=5) as batches:
        for consumed in (0, 8, 16):
            batches.read(consumed)
        time.sleep(0.02)
    assert read == [0, 8, 16]


def test_an_error_of_the_reader_is_raised_in_place_of_its_item() -> None:
    def make(position: int) -> int:
        if position == 2:
            raise DataError("sample 7 has ids 0..90; prepare the data again")
        return position

    with ahead(make, budget=5) as reader:
        assert [reader.take(), reader.take()] == [0, 1]
        for _ in range(2):
            with pytest.raises(DataError, match=r"^sample 7 has ids 0\.\.90; prepare the data again$"):
                reader.take()


def test_the_wait_for_a_read_that_hangs_has_a_limit() -> None:
    may_end = threading.Event()
    with ahead(lambda position: may_end.wait(20), timeout_seconds=0.1) as reader:
        with pytest.raises(TimeoutError, match=r"parallel\.timeout_seconds"):
            reader.take()
        may_end.set()


def test_closing_does_not_wait_for_a_reader_that_waits() -> None:
    with ahead(lambda position: position, budget=1) as reader:
        assert wait_until(reader.is_ready, seconds=20, poll_seconds=0.001)
        started = time.monotonic()
        reader.close()
        assert time.monotonic() - started < CLOSE_SECONDS / 2
    assert not [thread for thread in threading.enumerate() if thread.name == "data reader"]


def test_closing_leaves_a_read_that_hangs_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("pipeline.data.prefetch.CLOSE_SECONDS", 0.05)
    may_end = threading.Event()
    with ahead(lambda position: may_end.wait(20)):
        pass
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    may_end.set()


def test_a_signal_is_heard_while_waiting_for_data() -> None:
    may_end = threading.Event()

    def make(position: int) -> int:
        may_end.wait(20)
        return position

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        assert wait_until(lambda: stop.received is not None, seconds=20, poll_seconds=0.001)
        may_end.set()

    with StopFlag() as stop, ahead(make) as reader:
        interrupter = threading.Timer(0.05, interrupt)
        interrupter.start()
        assert reader.take() == 0
        interrupter.join(20)
        assert stop.requested is StopRequest.SIGNAL
