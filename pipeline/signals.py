"""Stop on request: a signal sets a flag, and all ranks agree on it once per step."""

import logging
import signal
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed
from torch.distributed import ProcessGroup

__all__ = ["StopFlag"]

logger = logging.getLogger(__name__)


class StopFlag:
    """Remembers SIGINT and SIGTERM instead of dying of them, until the loop asks.

    ::

        with StopFlag(device) as stop:
            for iteration in ...:
                train_step()
                if stop.is_set_on_any_rank():
                    break

    The handlers in place before return at the end. A second SIGINT raises ``KeyboardInterrupt``: the first
    was heard, but the step may take long.

    Args:
        device: where the ranks' collective runs.
        signals: which signals set the flag.
    """

    def __init__(
        self, device: torch.device, *, signals: Iterable[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
    ) -> None:
        self._device = device
        self._signals = tuple(signals)
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

    def is_set_on_any_rank(self, group: ProcessGroup | None = None) -> bool:
        """Return whether any rank was told to stop; every rank of the group calls it at the same place.

        Args:
            group: ranks that must agree; None is all of them.
        """
        flag = torch.tensor(int(self.received is not None), dtype=torch.int32, device=self._device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=group)
        return bool(flag.item())

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if self.received is signal.SIGINT and received is signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:
            self.received = received
