"""Stop on request: a signal or a time limit sets a flag, and all ranks agree on it once per step."""

import signal
import time
from collections.abc import Callable, Iterable
from enum import IntEnum
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["STOP_SIGNALS", "StopFlag", "StopRequest"]

# How often ranks that wait look whether they were asked to stop.
_POLL_SECONDS = 0.5

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest(IntEnum):
    """Why a run is to stop; of the ranks' requests the largest counts."""

    NONE = 0
    PLANNED = 1
    """Its own time limit has passed."""
    SIGNAL = 2
    """Somebody wants the machine back."""


class StopFlag:
    """Remembers SIGINT, SIGTERM and SIGUSR1 instead of dying of them, until the loop asks.

    ::

        with StopFlag() as stop:
            for iteration in ...:
                if stop.agreed():
                    break
                train_step()

    It needs no process group until the ranks are to agree, so that it can stand around the start of a run
    too. The handlers in place before return at the end. A second SIGINT raises ``KeyboardInterrupt``: the
    first was heard, but the step may take long.

    Args:
        signals: which signals set the flag.
        limit_seconds: time from now after which the flag sets itself; None is never.
    """

    def __init__(
        self, *, signals: Iterable[signal.Signals] = STOP_SIGNALS, limit_seconds: float | None = None
    ) -> None:
        self._signals = tuple(signals)
        self._deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
        self._previous: dict[signal.Signals, Any] = {}
        self.received: signal.Signals | None = None
        """The first signal this rank received."""

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._receive) for number in self._signals}
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def requested(self) -> StopRequest:
        """What this rank alone was asked."""
        if self.received is not None:
            return StopRequest.SIGNAL
        is_over = self._deadline is not None and time.monotonic() >= self._deadline
        return StopRequest.PLANNED if is_over else StopRequest.NONE

    def agreed(
        self, group: "ProcessGroup | None" = None, *, until: Callable[[float], bool] | None = None
    ) -> StopRequest:
        """Return what any rank was asked; every rank of the group calls it at the same place.

        Args:
            group: ranks that must agree; None is all of them.
            until: waits so many seconds at most for what the rank needs to go on, and returns whether it is
                there. Ranks wait for each other until it is there on all of them, or one was asked to stop.
        """
        import torch
        import torch.distributed

        while True:
            is_waiting = until is not None and not until(_POLL_SECONDS)
            # On the host: asking must not wait for the GPU.
            state = torch.tensor([int(self.requested), int(is_waiting)], dtype=torch.int32)
            torch.distributed.all_reduce(state, op=torch.distributed.ReduceOp.MAX, group=group)
            request, any_is_waiting = state.tolist()
            if request or not any_is_waiting:
                return StopRequest(request)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if self.received is signal.SIGINT and received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = received
