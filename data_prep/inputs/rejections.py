"""The lists of what was not taken, and the limits on it.

Bad records and lost files have limits of their own: a file may hold millions of records.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel

from data_prep.inputs.finding import SkippedFile
from data_prep.manifest import LostFile, RejectedRecord, each_once
from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically

REJECTED_NAME = "rejected.jsonl"
LOST_NAME = "lost_files.jsonl"
SKIPPED_NAME = "skipped_files.jsonl"
# A run of hours must not fail for one damaged line of a crawl; a wrong field name, which makes all records
# bad, must fail it in its first seconds.
DEFAULT_MAX_BAD_RECORDS = 100
DEFAULT_MAX_BAD_FILES = 0


def write_omissions(folder: Path, rejected: Iterable[RejectedRecord], lost: Iterable[LostFile]) -> None:
    """Write one JSON object per rejected record and lost file; no file for an empty list."""
    _write_list(folder / REJECTED_NAME, rejected, BaseModel.model_dump_json)
    _write_list(folder / LOST_NAME, lost, BaseModel.model_dump_json)


def write_skipped(folder: Path, skipped: Iterable[SkippedFile]) -> None:
    """Write one JSON object per skipped file of the input folders; no file for an empty list."""
    _write_list(folder / SKIPPED_NAME, skipped, lambda file: file.to_json())


def _write_list(path: Path, records: Iterable[object], dump: Callable[..., str]) -> None:
    lines = [dump(record) + "\n" for record in records]
    if lines:
        write_atomically(path, "".join(lines).encode())
    else:
        path.unlink(missing_ok=True)


def check_omissions(
    folder: Path,
    rejected: Sequence[RejectedRecord],
    lost: Sequence[LostFile],
    *,
    max_bad_records: int,
    max_bad_files: int,
) -> None:
    """Check that at most so many records are bad, and so many files lost.

    Whether a preparation succeeds does not depend on the order in which its shards are made.

    Raises:
        DataError: there are more; those found so far are listed in the folder.
    """
    # A file of many documents is read for each split.
    lost = each_once(lost)
    if len(rejected) <= max_bad_records and len(lost) <= max_bad_files:
        return
    found = sorted(rejected, key=lambda record: (record.path, record.line or 0))
    write_omissions(folder, found, lost)
    if len(lost) > max_bad_files:
        raise DataError(
            f"at most {max_bad_files} input files may be lost, but {len(lost)} are so far: "
            f"{_place(lost[0])}: {lost[0].reason}; "
            f"all of them are in {folder / LOST_NAME}; repair or remove them, check "
            "--text-field, or allow more with --max-bad-files, and run the command again: finished shards "
            "are kept"
        )
    raise DataError(
        f"at most {max_bad_records} records may be bad, but {len(found)} are so far: {found[0].place}: "
        f"{found[0].reason}; all of them are in {folder / REJECTED_NAME}; fix them, check --text-field, or "
        "allow more with --max-bad-records, and run the command again: finished shards are kept"
    )


def _place(file: LostFile) -> str:
    return file.path if file.line is None else f"{file.path} from record {file.line} on"
