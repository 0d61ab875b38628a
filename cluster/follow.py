"""Following the log of a job until it has ended."""

import sys
import time
from codecs import getincrementaldecoder
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from cluster.job_record import JobRecord, JobState, JobStatus
from cluster.patience import PatientStatus
from cluster.targets import JobTarget
from pipeline.shared.console import printable
from pipeline.shared.errors import ClusterError

_POLL_SECONDS = 0.5
# Polled less often than the files, because every query is work for the cluster's controller.
_STATUS_SECONDS = 5.0
# The exit code of a job whose target no longer knows it.
_UNKNOWN_CODE = 1


class LogTail:
    """Copies a file as it grows; when another one takes its place, that one from its beginning.

    Args:
        output: where to.
        num_lines: of the first file, this many lines that are there already; None: all.
    """

    def __init__(self, output: BinaryIO, num_lines: int | None = None) -> None:
        self._output = output
        self._decoder = getincrementaldecoder("utf-8")("backslashreplace")
        self._num_lines = num_lines
        self._file: Path | None = None
        self._position = 0

    def copy(self, file: Path | None) -> None:
        """Copy what was added to a file since the last call; None: to the file of the last call."""
        if file is not None and file != self._file:
            is_first = self._file is None and self._num_lines is not None
            self._position = _start_of_lines(file, self._num_lines or 0) if is_first else 0
            self._file = file
        if self._file is None:
            return
        with self._file.open("rb") as source:
            source.seek(self._position)
            added = source.read()
        self._position += len(added)
        # What ranks print holds text from outside, such as names of files.
        self._output.write(printable(self._decoder.decode(added)).encode())
        self._output.flush()


def newest_lines(files: Sequence[Path], *, lines: int, rank: int) -> str:
    """Return the end of a rank's log.

    Raises:
        ClusterError: that rank has written nothing yet.
    """
    if rank >= len(files):
        raise ClusterError(
            f"rank {rank} must have started to have a log, but {len(files)} ranks have; "
            "see `megaponder jobs status`, and follow with -f"
        )
    text = files[rank].read_text(encoding="utf-8", errors="replace")
    return "".join(text.splitlines(keepends=True)[-lines:] if lines else [])


def follow(target: JobTarget, record: JobRecord, *, lines: int, rank: int) -> int:
    """Copy a rank's log to standard output until the job has ended; return the job's exit code.

    A job that restarts writes a new file, which is followed from its beginning.
    """
    tail, patient = LogTail(sys.stdout.buffer, lines), PatientStatus(target)
    status: JobStatus | None = None
    polled_at = -_STATUS_SECONDS
    while True:
        has_ended = False
        if time.monotonic() - polled_at >= _STATUS_SECONDS:
            status = patient.of(record)
            polled_at = time.monotonic()
            has_ended = status is not None and (status.state.is_final or status.state == JobState.UNKNOWN)
        files = target.logs(record)
        tail.copy(files[rank] if rank < len(files) else None)
        if has_ended and status is not None:
            return _UNKNOWN_CODE if status.exit_code is None else status.exit_code
        time.sleep(_POLL_SECONDS)


def _start_of_lines(file: Path, lines: int) -> int:
    content = file.read_bytes()
    kept = content.splitlines(keepends=True)[-lines:] if lines else []
    return len(content) - sum(len(line) for line in kept)
