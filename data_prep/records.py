"""The documents in one input file, and what in it could not become one."""

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from data_prep.documents import FileFormat, InputFile, file_format
from data_prep.manifest import ReadSettings
from data_prep.opening import DAMAGE, DamagedFileError, open_decompressed, open_input

PARQUET_BATCH_ROWS = 64
LONGEST_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text; ``line`` counts lines, rows or tar members from 1 and is None for a whole file."""

    line: int | None
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """A place in a file that holds no document, and why."""

    line: int | None
    reason: str


class _BadRecordError(Exception):
    """The record at hand holds no text; the message says why."""


# One record before it is understood: its number, and a function that makes its text
_Item = tuple[int | None, Callable[[], str]]


def holds_many(file: InputFile, reading: ReadSettings) -> bool:
    """Whether a file may hold more than one document."""
    return file_format(file.path, reading) != "text"


def document_name(file: InputFile, line: int | None) -> str:
    """Name of a document, by which it is put into a split: no other document has it."""
    return file.path if line is None else f"{file.path}:{line}"


def read_records(
    file: InputFile, reading: ReadSettings, wanted: Callable[[int | None], bool] = lambda line: True
) -> Iterator[Document | BadRecord]:
    """Read a file's documents in order, one in memory at a time.

    A bad record does not end the file. Bytes that cannot be decompressed or a file that breaks off do: they
    are the last record.

    Args:
        file: the file as it was listed.
        reading: where in a record the text is.
        wanted: chooses records by their number; others are not even understood.
    Raises:
        DataError: the file is gone, or changed since it was listed.
    """
    line: int | None = None
    kind = file_format(file.path, reading)
    try:
        for line, make_text in _items(kind, file, reading.text_field):
            if wanted(line):
                yield _understood(line, make_text)
    except DAMAGE as error:
        broken = None if kind == "text" else (line or 0) + 1
        if wanted(broken):
            prefix = "" if isinstance(error, DamagedFileError) else "cannot be read any further: "
            yield BadRecord(line=broken, reason=f"{prefix}{error}")


def _items(kind: FileFormat, file: InputFile, field: str) -> Iterator[_Item]:
    match kind:
        case "text":
            return _whole_text(file)
        case "lines":
            return _text_lines(file)
        case "jsonl":
            return _json_lines(file, field)
        case "parquet":
            return _parquet_rows(file, field)
        case "tar":
            return _tar_members(file)


def _understood(line: int | None, make_text: Callable[[], str]) -> Document | BadRecord:
    try:
        return Document(line=line, text=make_text())
    except UnicodeDecodeError as error:
        return BadRecord(line=line, reason=f"not UTF-8 at byte {error.start}: {error.reason}")
    except _BadRecordError as error:
        return BadRecord(line=line, reason=str(error))


def _whole_text(file: InputFile) -> Iterator[_Item]:
    with open_decompressed(file) as stream:
        yield None, partial(_utf8, stream.read())


def _text_lines(file: InputFile) -> Iterator[_Item]:
    for number, line in _lines(file):
        yield number, partial(_utf8, line.rstrip(b"\r\n"))


def _json_lines(file: InputFile, field: str) -> Iterator[_Item]:
    for number, line in _lines(file):
        if not line.isspace():
            yield number, partial(_json_text, line, field)


def _lines(file: InputFile) -> Iterator[tuple[int, bytes]]:
    with open_decompressed(file) as stream:
        yield from enumerate(stream, start=1)


def _utf8(content: bytes) -> str:
    return content.decode("utf-8")


def _json_text(content: bytes, field: str) -> str:
    try:
        record = json.loads(content.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise _BadRecordError(f"not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise _BadRecordError("not JSON that can be read: it is nested too deeply") from error
    if not isinstance(record, dict):
        raise _BadRecordError(f"a record must be a JSON object, but is {_shown(record)}")
    if field not in record:
        raise _BadRecordError(f"no field {field!r}, only {_shown(sorted(record))}")
    return _checked_text(record[field], field)


def _checked_text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise _BadRecordError(f"field {field!r} must be text, but is {_shown(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        # JSON can spell half of a surrogate pair, which is no character
        raise _BadRecordError(f"half a character at position {error.start} of field {field!r}") from error
    return value


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= LONGEST_SHOWN_CHARACTERS else f"{shown[:LONGEST_SHOWN_CHARACTERS]}..."


def _parquet_rows(file: InputFile, field: str) -> Iterator[_Item]:
    # only workers that meet a parquet file pay for Arrow
    import pyarrow
    import pyarrow.parquet

    with open_input(file) as stream:
        try:
            table = pyarrow.parquet.ParquetFile(stream)
            if field not in table.schema_arrow.names:
                raise DamagedFileError(f"no column {field!r}, only {_shown(table.schema_arrow.names)}")
            number = 0
            for batch in table.iter_batches(PARQUET_BATCH_ROWS, columns=[field], use_threads=False):
                for value in batch.column(0):
                    number += 1
                    yield number, partial(_cell_text, value, field)
        except (pyarrow.ArrowException, OSError) as error:
            # Arrow's own errors have no number; those of the disk or the network do
            if getattr(error, "errno", None) is not None:
                raise
            raise DamagedFileError(str(error)) from error


def _cell_text(value: Any, field: str) -> str:
    return _checked_text(value.as_py(), field)


def _tar_members(file: InputFile) -> Iterator[_Item]:
    has_text = False
    with open_decompressed(file) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|", tarinfo=_CheckedMember) as tar:
                for number, member in enumerate(tar, start=1):
                    if member.isfile() and member.name.endswith(".txt"):
                        has_text = True
                        yield number, partial(_utf8, _member_bytes(tar, member))
        except tarfile.TarError as error:
            raise DamagedFileError(str(error)) from error
    if not has_text:
        raise DamagedFileError("no member ends in .txt")


def _member_bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    reader = tar.extractfile(member)
    assert reader is not None, "a plain file has content"
    return reader.read()


class _CheckedMember(tarfile.TarInfo):
    """A member whose absence is noticed: tarfile takes an archive without its end mark for a whole one."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_CheckedMember":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"the archive breaks off or is damaged: {error}") from error
