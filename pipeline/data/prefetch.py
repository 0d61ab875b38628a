"""Batches are read and packed ahead of their step, in a thread.

A thread, not a process: nearly all of the work is copying by numpy, which lets other threads run meanwhile,
and what it makes has not to be copied again into another process.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from pipeline.data.batches import BatchShare, TrainingBatches
from pipeline.data.order import Order

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

# How long the end of a run waits for a read that hangs before it goes on without it.
CLOSE_SECONDS = 5.0
# Longest wait in one go: a thread that waits looks this often whether it is still needed.
_POLL_SECONDS = 1.0


class Ahead(Generic[Item]):
    """Makes items in a thread, in order, and no more than so many ahead."""

    def __init__(
        self, make: Callable[[int], Item], positions: Iterable[int], *, budget: int, timeout_seconds: float
    ) -> None:
        """Begin to make items.

        Args:
            make: makes the item of a position; runs in the thread.
            positions: of the items, in order.
            budget: items that are made and not taken yet, the one that is being made included; at least 1.
            timeout_seconds: how long an item may be waited for.
        """
        self._make = make
        self._positions = iter(positions)
        self._budget = budget
        self._timeout_seconds = timeout_seconds
        self._changed = threading.Condition()
        self._ready: deque[Item] = deque()
        self._num_held = 0
        self._error: BaseException | None = None
        self._is_closed = False
        self._waiting_since: float | None = None
        # A thread that hangs in a read must not keep the program from its end.
        self._thread = threading.Thread(target=self._work, name="data reader", daemon=True)
        self._thread.start()

    def is_ready(self, wait_seconds: float = 0.0) -> bool:
        """Return whether `take` would return or raise at once, after waiting for that a moment.

        Raises:
            TimeoutError: the item has been waited for too long.
        """
        with self._changed:
            if self._changed.wait_for(self._has_news, timeout=wait_seconds):
                self._waiting_since = None
                return True
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now - wait_seconds
        if now - self._waiting_since >= self._timeout_seconds:
            raise TimeoutError(
                f"the next batch must be read within {self._timeout_seconds:.0f} seconds "
                "(parallel.timeout_seconds), but is not; look whether the file system of the data hangs"
            )
        return False

    def take(self) -> Item:
        """Return the next item, waiting for it where need be; what went wrong in the thread is raised here.

        Raises:
            TimeoutError: it is not made in time.
        """
        while not self.is_ready(min(_POLL_SECONDS, self._timeout_seconds)):
            pass
        with self._changed:
            if self._ready:
                self._num_held -= 1
                self._changed.notify_all()
                return self._ready.popleft()
            assert self._error is not None, "there is news: an item or an error"
            raise self._error

    def close(self) -> None:
        """Stop; what was not taken is lost. A read that hangs is left behind."""
        with self._changed:
            self._is_closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.warning("a read of the data has not ended within %.0f seconds; it is left", CLOSE_SECONDS)

    def _has_news(self) -> bool:
        return bool(self._ready) or self._error is not None

    def _work(self) -> None:
        try:
            for position in self._positions:
                if not self._begin_item():
                    return
                item = self._make(position)
                with self._changed:
                    self._ready.append(item)
                    self._changed.notify_all()
                # Nothing is held beside what is counted.
                del item
            raise EOFError("no position is left to make an item of")
        except BaseException as error:
            # Raised again where the item is taken, whatever it is: nobody else hears of it.
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _begin_item(self) -> bool:
        """Wait until there is room for another item; False when none is wanted any more."""
        with self._changed:
            while self._num_held >= self._budget and not self._is_closed:
                self._changed.wait(_POLL_SECONDS)
            self._num_held += 1
            return not self._is_closed


class PrefetchedBatches:
    """The batches of one data-parallel rank, made ahead; exactly those of `TrainingBatches`."""

    def __init__(
        self, batches: TrainingBatches, *, stop: int, num_batches: int, timeout_seconds: float
    ) -> None:
        """Read nothing yet.

        Args:
            batches: reads and packs.
            stop: samples of the whole run; none behind them is read ahead.
            num_batches: how many to have ready or under way, at most; 0 reads each when it is asked for.
            timeout_seconds: how long a batch may be waited for.
        """
        self._batches = batches
        self._stop = stop
        self._num_batches = num_batches
        self._timeout_seconds = timeout_seconds
        self._ahead: Ahead[BatchShare] | None = None
        self._next = 0

    @property
    def order(self) -> Order:
        """Which sample comes when."""
        return self._batches.order

    def is_ready(self, consumed_samples: int, wait_seconds: float = 0.0) -> bool:
        """Return whether `read` would not have to wait, after waiting for that a moment.

        Raises:
            TimeoutError: the batch has been waited for too long.
        """
        if not self._is_read_ahead(consumed_samples):
            return True
        return self._ahead_from(consumed_samples).is_ready(wait_seconds)

    def read(self, consumed_samples: int) -> BatchShare:
        """Return this rank's part of the global batch that begins after ``consumed_samples``.

        Any batch may be asked for; the one that follows the last is there soonest.

        Raises:
            TimeoutError: it is not read in time.
        """
        if not self._is_read_ahead(consumed_samples):
            return self._batches.read(consumed_samples)
        share = self._ahead_from(consumed_samples).take()
        self._next += self._batches.layout.global_batch_size
        return share

    def close(self) -> None:
        """Stop reading ahead."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _is_read_ahead(self, consumed_samples: int) -> bool:
        return self._num_batches > 0 and consumed_samples < self._stop

    def _ahead_from(self, consumed_samples: int) -> Ahead[BatchShare]:
        if self._ahead is not None and self._next == consumed_samples:
            return self._ahead
        self.close()
        self._next = consumed_samples
        step = self._batches.layout.global_batch_size
        self._ahead = Ahead(
            self._batches.read,
            range(consumed_samples, self._stop, step),
            budget=self._num_batches,
            timeout_seconds=self._timeout_seconds,
        )
        return self._ahead
