"""Following the log of a job until it has ended."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.job_record import JobRecord, JobState
from cluster.targets import JobTarget
from pipeline.shared.errors import ClusterError

_POLL_SECONDS = 0.5
# A target is asked less often than its files: every question costs the cluster's controller some work.
_STATUS_SECONDS = 5.0
# The exit code of a job whose target does not know it any more.
_UNKNOWN_CODE = 1


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
    """Copy what a rank writes to standard output until the job has ended; return the job's exit code.

    A job that starts again writes a new file, which is followed from its beginning.
    """
    file: Path | None = None
    position = 0
    asked = -_STATUS_SECONDS
    while True:
        is_over = False
        if time.monotonic() - asked >= _STATUS_SECONDS:
            status = target.status(record)
            asked = time.monotonic()
            is_over = status.state.is_final or status.state == JobState.UNKNOWN
        files = target.logs(record)
        newest = files[rank] if rank < len(files) else None
        if newest != file and newest is not None:
            position = 0 if file is not None else _start_of_lines(newest, lines)
            file = newest
        if file is not None:
            position = _copy(file, position)
        if is_over:
            return _UNKNOWN_CODE if status.exit_code is None else status.exit_code
        time.sleep(_POLL_SECONDS)


def _start_of_lines(file: Path, lines: int) -> int:
    content = file.read_bytes()
    kept = content.splitlines(keepends=True)[-lines:] if lines else []
    return len(content) - sum(len(line) for line in kept)


def _copy(file: Path, position: int) -> int:
    with file.open("rb") as source:
        source.seek(position)
        added = source.read()
    sys.stdout.write(added.decode("utf-8", errors="replace"))
    sys.stdout.flush()
    return position + len(added)
