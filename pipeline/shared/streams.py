"""Standard streams that outlive whoever reads them.

The reader of our output may leave (`megaponder train 2>&1 | head`), the disk below a log may be full, and a
command may be started without a stream. None of this may end a training, or turn a result into a traceback.
"""

import errno
import io
import os
import select
import sys
from pathlib import Path
from typing import Any, TextIO

from pipeline.shared.errors import UserError

__all__ = ["OutputError", "keep_log_in", "protect_standard_streams"]

_STDIN, _STDOUT, _STDERR = range(3)
# The reader of a pipe has left, or the terminal is gone.
_NOBODY_READS = (errno.EPIPE, errno.EIO, errno.ENXIO)
# Of a log that nobody reads, until the folder exists in which it continues.
_WAITING_BYTES = 65536


class OutputError(UserError):
    """Standard output cannot be written."""


def protect_standard_streams() -> None:
    """Replace standard output and standard error of this process by streams that do not fail.

    - Output that nobody reads any more is dropped, and the command continues. A log continues in the file of
      :func:`keep_log_in` if there is one.
    - A log that cannot be written for another reason, such as a full disk, is dropped. Results that cannot be
      written end the command with :class:`OutputError`.
    - Characters that the terminal's encoding lacks are written as escapes.
    - A stream that the process was started without is the null device: a file that is opened later does not
      take its place and receive what libraries print.

    Does nothing where Python's own streams have been replaced already, as tests do.
    """
    _occupy_closed()
    if sys.stdin is None:
        sys.stdin = os.fdopen(_STDIN, encoding="utf-8", closefd=False)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _protected(sys.stdout, _STDOUT, is_log=False)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _protected(sys.stderr, _STDERR, is_log=True)


def keep_log_in(file: Path) -> None:
    """Name the file in which standard error continues when nobody reads it, as soon as its folder exists."""
    raw = _raw_of(sys.stderr)
    if raw is not None:
        raw.fallback = file


class _OutputFile(io.FileIO):
    """A descriptor to write to; see :func:`protect_standard_streams`."""

    def __init__(self, descriptor: int, *, is_log: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._is_log = is_log
        self.fallback: Path | None = None
        self._waiting = b""

    def write(self, data: Any, /) -> int:
        try:
            return self._write(data)
        except OSError as error:
            if error.errno in _NOBODY_READS:
                self._write_elsewhere(data)
            elif not self._is_log:
                # Python writes what is left in its buffers when it ends, and would complain once more.
                self._become(os.open(os.devnull, os.O_WRONLY))
                raise OutputError(
                    f"standard output must be writable, but is not ({error.strerror}); free some space, or "
                    "redirect it to another place"
                ) from error
            # Else the next piece of the log is tried again: the disk may have space by then.
            return len(memoryview(data))

    def _write(self, data: Any) -> int:
        while True:
            written: int | None = super().write(data)
            if written is not None:
                return written
            # Another program has set the pipe that we share to not block.
            select.select([], [self.fileno()], [])

    def _write_elsewhere(self, data: Any) -> None:
        """Continue in the fallback; as long as its folder is absent, keep what it will begin with."""
        if self.fallback is None:
            self._become(os.open(os.devnull, os.O_WRONLY))
            return
        self._waiting = (self._waiting + bytes(data))[-_WAITING_BYTES:]
        try:
            self._become(os.open(self.fallback, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666))
            self._write(self._waiting)
        except OSError:
            return
        self._waiting = b""

    def _become(self, opened: int) -> None:
        """Write to another file from now on; so do libraries and child processes."""
        os.dup2(opened, self.fileno())
        os.close(opened)


def _protected(stream: TextIO | None, descriptor: int, *, is_log: bool) -> TextIO:
    encoding = "utf-8"
    if stream is not None:
        stream.flush()
        encoding = stream.encoding
    raw = _OutputFile(descriptor, is_log=is_log)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=True
    )


def _raw_of(stream: Any) -> _OutputFile | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _OutputFile) else None


def _occupy_closed() -> None:
    for descriptor in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
