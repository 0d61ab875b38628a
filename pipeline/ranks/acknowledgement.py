"""Answer stop signals at once, from a thread: the main thread may be inside a long operation.

Python runs signal handlers between two instructions of the main thread, but writes the number of the signal
to a file of our choice as soon as it arrives.
"""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from pipeline.shared.exit_codes import ExitCode

__all__ = ["Acknowledgement"]

logger = logging.getLogger(__name__)

# For the main thread to end by itself after a second interrupt, before the process ends without it.
_PATIENCE_SECONDS = 3.0
_SHOW_CURSOR = b"\x1b[?25h\n"
_CLOSED = 0


class Acknowledgement:
    """Logs that the first stop signal was received, and ends the process after a second SIGINT.

    Only for the main thread, and while Python handles the signals.

    Args:
        text: what happens next; it is logged at the first signal.
        speaks: False for ranks that log nothing.
        patience_seconds: how long the main thread may take to end after a second SIGINT.
        end: ends the process with a code, cleaning up nothing.
    """

    def __init__(
        self,
        text: str,
        *,
        speaks: bool = True,
        patience_seconds: float = _PATIENCE_SECONDS,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._text = text
        self._speaks = speaks
        self._patience_seconds = patience_seconds
        self._end = end
        self._reader, self._writer = socket.socketpair()
        # A handler must not block, which the interpreter insists on.
        self._writer.setblocking(False)
        self._previous = -1
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._answer, name="answers to stop signals", daemon=True)

    def __enter__(self) -> Self:
        self._previous = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._previous)
        self._is_closed.set()
        self._writer.send(bytes([_CLOSED]))
        self._thread.join(self._patience_seconds)
        self._reader.close()
        self._writer.close()

    def _answer(self) -> None:
        num_interrupts, is_first = 0, True
        while not self._is_closed.is_set():
            received = self._reader.recv(1)[0]
            if received == _CLOSED:
                return
            num_interrupts += received == signal.SIGINT
            if num_interrupts == 2:
                self._end_at_once()
                return
            if is_first and self._speaks:
                again = "; Ctrl-C again to end at once" if received == signal.SIGINT else ""
                logger.info("%s received: %s%s", signal.Signals(received).name, self._text, again)
            is_first = False

    def _end_at_once(self) -> None:
        if self._is_closed.wait(self._patience_seconds):
            return
        if sys.__stderr__ is not None and sys.__stderr__.isatty():
            # A progress bar hides it.
            os.write(sys.__stderr__.fileno(), _SHOW_CURSOR)
        self._end(ExitCode.INTERRUPTED)
