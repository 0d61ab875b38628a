"""Read and pack batches ahead of their step, in a thread.

A thread, not a process: nearly all of the work is copying by numpy, which releases the interpreter lock, and
the result needs no further copy into another process.

A read that hangs, on a file system that does not respond, must neither block the training loop for ever nor
keep the process from exiting. So the loop never waits without a limit, but polls and in between agrees with
the other ranks whether to stop; and the thread is a daemon, which is abandoned if it does not end.
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

# How long the end of a run waits for a read that hangs.
CLOSE_SECONDS = 5.0
# Longest single wait: a waiting thread checks this often whether it is still needed.
_POLL_SECONDS = 1.0


class Ahead(Generic[Item]):
    """A producer that makes items in a thread, in order, with a limit on how many are made ahead."""

    def __init__(
        self, make: Callable[[int], Item], positions: Iterable[int], *, budget: int, timeout_seconds: float
    ) -> None:
        """Start to make items.

        Args:
            make: returns the item of a position; runs in the thread.
            positions: of the items, in order.
            budget: maximum number of items made but not taken, including the one that is being made; at
                least 1.
            timeout_seconds: longest wait for an item.
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
        # A daemon: a thread that hangs in a read must not keep the process from exiting.
        self._thread = threading.Thread(target=self._work, name="data reader", daemon=True)
        self._thread.start()

    def is_ready(self, wait_seconds: float = 0.0) -> bool:
        """Wait at most `wait_seconds`; return whether `take` would return or raise without waiting.

        Raises:
            TimeoutError: the waits for this item have exceeded the limit in total.
        """
        with self._changed:
            if self._changed.wait_for(self._has_item_or_error, timeout=wait_seconds):
                self._waiting_since = None
                return True
        now = time.monotonic()
        self._waiting_since = self._waiting_since or now - wait_seconds
        if now - self._waiting_since >= self._timeout_seconds:
            raise TimeoutError(
                f"the next batch must be read within {self._timeout_seconds:.0f} seconds "
                "(parallel.timeout_seconds), but is not; check whether the file system of the data hangs"
            )
        return False

    def take(self) -> Item:
        """Wait for the next item and return it; an error in the thread is raised here.

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
            assert self._error is not None, "ready means an item or an error"
            raise self._error

    def close(self) -> None:
        """Stop, and drop the items that were not taken; a thread that hangs is abandoned."""
        with self._changed:
            self._is_closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            logger.warning("a read of the data has not ended within %.0f s; it is abandoned", CLOSE_SECONDS)

    def _has_item_or_error(self) -> bool:
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
                # This reference would keep one more item in memory than the budget counts.
                del item
            raise EOFError("all positions have been used")
        except BaseException as error:
            # Of any kind: nobody else sees it, so it is raised again where the item is taken.
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _begin_item(self) -> bool:
        """Wait until the budget allows another item; return False if this producer was closed."""
        with self._changed:
            while self._num_held >= self._budget and not self._is_closed:
                self._changed.wait(_POLL_SECONDS)
            self._num_held += 1
            return not self._is_closed


class PrefetchedBatches:
    """The batches of `TrainingBatches`, read ahead."""

    def __init__(
        self, batches: TrainingBatches, *, stop: int, num_batches: int, timeout_seconds: float
    ) -> None:
        """Prepare to read; the first batch is read when it is requested.

        Args:
            batches: reads and packs.
            stop: samples of the run; no batch after them is read ahead.
            num_batches: maximum number of batches to read ahead; 0 reads each when it is requested.
            timeout_seconds: longest wait for a batch.
        """
        self._batches = batches
        self._stop = stop
        self._num_batches = num_batches
        self._timeout_seconds = timeout_seconds
        self._ahead: Ahead[BatchShare] | None = None
        self._next = 0

    @property
    def order(self) -> Order:
        """The order of the samples."""
        return self._batches.order

    def is_ready(self, consumed_samples: int, wait_seconds: float = 0.0) -> bool:
        """Wait at most `wait_seconds`; return whether `read` would return without waiting.

        Raises:
            TimeoutError: the waits for this batch have exceeded the limit in total.
        """
        if not self._is_read_ahead(consumed_samples):
            return True
        return self._ahead_from(consumed_samples).is_ready(wait_seconds)

    def read(self, consumed_samples: int) -> BatchShare:
        """Return this rank's part of the global batch that begins after ``consumed_samples``.

        Any batch may be requested; only the one after the last is read ahead.

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
            lambda position: self._batches.read(position).pinned(),
            range(consumed_samples, self._stop, step),
            budget=self._num_batches,
            timeout_seconds=self._timeout_seconds,
        )
        return self._ahead
