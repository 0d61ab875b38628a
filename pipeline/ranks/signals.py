"""Stop on request: a signal or a time limit sets a flag, on which all ranks agree once per step."""

import signal
import time
from collections.abc import Callable, Iterable
from enum import IntEnum
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["STOP_SIGNALS", "StopFlag", "StopRequest"]

# How often ranks that wait for data check whether a stop was requested.
_POLL_SECONDS = 0.5

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest(IntEnum):
    """Why a run should stop; the largest request of all ranks wins."""

    NONE = 0
    PLANNED = 1
    """The run's own time limit has passed."""
    SIGNAL = 2
    """A stop signal was received."""


class StopFlag:
    """A flag that SIGINT, SIGTERM and SIGUSR1 set instead of ending the process, for the loop to check.

    ::

        with StopFlag() as stop:
            for iteration in ...:
                if stop.agreed():
                    break
                train_step()

    It needs no process group until the ranks must agree, so it can cover the start of a run as well. The
    previous handlers are restored at the end. A second SIGINT raises ``KeyboardInterrupt``, for users who do
    not want to wait for the end of a step.

    Args:
        signals: which signals set the flag.
        limit_seconds: time from now after which the flag is set; None sets no limit.
    """

    def __init__(
        self, *, signals: Iterable[signal.Signals] = STOP_SIGNALS, limit_seconds: float | None = None
    ) -> None:
        self._signals = tuple(signals)
        self._deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
        self._previous: dict[signal.Signals, Any] = {}
        self.received: signal.Signals | None = None
        """The first signal this rank received."""
        self.noticed = False
        """Whether any rank gave notice when they last agreed."""

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
        """The request that this rank alone received."""
        if self.received is not None:
            return StopRequest.SIGNAL
        has_passed = self._deadline is not None and time.monotonic() >= self._deadline
        return StopRequest.PLANNED if has_passed else StopRequest.NONE

    def agreed(
        self,
        group: "ProcessGroup | None" = None,
        *,
        until: Callable[[float], bool] | None = None,
        notice: bool = False,
    ) -> StopRequest:
        """Return the request that any rank received; every rank of the group calls it at the same place.

        Args:
            group: ranks that must agree; None means all.
            until: waits for what this rank needs to continue, at most the given number of seconds, and
                returns whether it is ready. Ranks poll until all are ready, or one received a request: a rank
                whose data never arrives must not keep the others from stopping.
            notice: what this rank wants all to know; :attr:`noticed` says whether any did.
        """
        import torch
        import torch.distributed

        while True:
            is_waiting = until is not None and not until(_POLL_SECONDS)
            # On the host, so that it does not synchronize with the GPU.
            state = torch.tensor([int(self.requested), int(is_waiting), int(notice)], dtype=torch.int32)
            torch.distributed.all_reduce(state, op=torch.distributed.ReduceOp.MAX, group=group)
            request, any_is_waiting, any_notice = state.tolist()
            self.noticed = bool(any_notice)
            if request or not any_is_waiting:
                return StopRequest(request)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if self.received is signal.SIGINT and received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = received
