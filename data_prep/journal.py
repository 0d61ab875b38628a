"""The journal of a preparation: one line per finished shard, from which an interrupted run resumes."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from data_prep.manifest import PreparationHeader, ShardEntry, summarize
from data_prep.regular_files import read_regular_file
from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically

JOURNAL_NAME = "progress.jsonl"
_LARGEST_JOURNAL_BYTES = 1 << 30


def start_journal(folder: Path, header: PreparationHeader, entries: Iterable[ShardEntry]) -> None:
    """Replace the journal by one with this header and the shards that are still valid."""
    lines = [header.model_dump_json(), *(entry.model_dump_json() for entry in entries)]
    write_atomically(folder / JOURNAL_NAME, "".join(line + "\n" for line in lines).encode())


def append_entry(folder: Path, entry: ShardEntry) -> None:
    """Append a finished shard; it is on disk when this returns."""
    with (folder / JOURNAL_NAME).open("ab") as file:
        file.write((entry.model_dump_json() + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def load_journal(folder: Path) -> tuple[PreparationHeader, tuple[ShardEntry, ...]] | None:
    """Read the journal, or return None if there is none.

    A last line without its end was being written when the process died; its shard counts as missing.

    Raises:
        DataError: a complete line is invalid.
    """
    path = folder / JOURNAL_NAME
    try:
        lines = list(_complete_lines(read_regular_file(path, largest_bytes=_LARGEST_JOURNAL_BYTES)))
    except FileNotFoundError:
        return None
    try:
        header = PreparationHeader.model_validate_json(lines[0])
        return header, tuple(ShardEntry.model_validate_json(line) for line in lines[1:])
    except (IndexError, ValidationError) as error:
        finding = summarize(error) if isinstance(error, ValidationError) else "it is empty"
        raise DataError(
            f"{path} must be the journal of an interrupted preparation by this version, but is not: "
            f"{finding}; run again with --overwrite to start from scratch"
        ) from error


def _complete_lines(content: bytes) -> Iterator[bytes]:
    complete, _, _ = content.rpartition(b"\n")
    return iter(complete.split(b"\n")) if complete else iter(())
