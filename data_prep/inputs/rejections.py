"""The list of records that were skipped, and the limit on their number."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.manifest import RejectedRecord
from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically

REJECTED_NAME = "rejected.jsonl"
# A run of hours must not fail for one damaged line of a crawl; a wrong field name, which makes all records
# bad, must fail it in its first seconds.
DEFAULT_MAX_BAD_RECORDS = 100


def write_rejected(folder: Path, rejected: Iterable[RejectedRecord]) -> None:
    """Write one JSON object per rejected record; no file if there are none."""
    lines = [record.model_dump_json() + "\n" for record in rejected]
    if lines:
        write_atomically(folder / REJECTED_NAME, "".join(lines).encode())
    else:
        (folder / REJECTED_NAME).unlink(missing_ok=True)


def check_rejected(folder: Path, rejected: Sequence[RejectedRecord], *, limit: int) -> None:
    """Check that there are at most ``limit`` bad records.

    Whether a preparation succeeds does not depend on the order in which its shards are made.

    Raises:
        DataError: there are more; those found so far are listed in the folder.
    """
    if len(rejected) <= limit:
        return
    found = sorted(rejected, key=lambda record: (record.path, record.line or 0))
    write_rejected(folder, found)
    raise DataError(
        f"at most {limit} records may be bad, but {len(found)} are so far: {found[0].place}: "
        f"{found[0].reason}; all of them are in {folder / REJECTED_NAME}; fix them, check --text-field, or "
        "allow more with --max-bad-records, and run the command again: finished shards are kept"
    )
