"""The documents in one input file, and what in it could not become one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

from data_prep.inputs.documents import InputFile, file_format
from data_prep.inputs.json_records import json_text
from data_prep.inputs.lines import count_lines_before, read_lines
from data_prep.inputs.opening import DAMAGE, DamagedFileError, open_decompressed
from data_prep.inputs.parquet_records import read_rows
from data_prep.inputs.ranges import FileRange, is_cuttable
from data_prep.inputs.tar_records import read_members
from data_prep.inputs.texts import BadRecordError, Parts, utf8_text
from data_prep.manifest import ReadSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text. ``position`` tells it from the others of its file; it is None for a whole file."""

    position: int | None
    parts: Parts

    @property
    def is_empty(self) -> bool:
        """Whether there is no character in it."""
        return self.parts == ()

    @property
    def text(self) -> str:
        """All of it in one string."""
        return "".join(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """A place that holds no document, and why.

    ``line`` counts lines, rows or tar members of the file from 1, and is None for a whole file.
    """

    line: int | None
    reason: str


# chooses records by their position
Choice = Callable[[int | None], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """One record before it is understood; ``number`` counts from the beginning of the range."""

    position: int | None
    number: int | None
    make_parts: Callable[[], Parts]


def holds_many(file: InputFile, reading: ReadSettings) -> bool:
    """Whether a file may hold more than one document."""
    return file_format(file.path, reading) != "text"


def document_name(file: InputFile, position: int | None) -> str:
    """Name of a document, by which it is put into a split: no other document has it.

    Args:
        file: the file it is in.
        position: None for a whole file; the byte at which its line begins, so that the name does not depend
            on who reads the file from where; where a file is always read from its beginning or says itself
            which row is where, the number of the line, row or member.
    """
    return file.path if position is None else f"{file.path}:{position}"


def read_records(
    part: FileRange, reading: ReadSettings, wanted: Choice = lambda position: True
) -> Iterator[Document | BadRecord]:
    """Read the documents of a range in order, one in memory at a time.

    A bad record does not end the file. Bytes that cannot be decompressed or a file that breaks off do: they
    are the last record.

    Args:
        part: what to read of a file as it was listed.
        reading: where in a record the text is.
        wanted: chooses records by their positions; others are not even understood.
    Raises:
        DataError: the file is gone, or changed since it was listed.
    """
    return _Reader(part, reading, wanted).records()


class _Reader:
    """Reads one range."""

    def __init__(self, part: FileRange, reading: ReadSettings, wanted: Choice) -> None:
        self._part = part
        self._reading = reading
        self._wanted = wanted
        self._kind = file_format(part.file.path, reading)

    def records(self) -> Iterator[Document | BadRecord]:
        number: int | None = None
        try:
            for record in self._found():
                number = record.number
                if self._wanted(record.position):
                    yield self._understood(record)
        except DAMAGE as error:
            first_lost = getattr(error, "number", None) or (number or 0) + 1
            broken = None if self._kind == "text" else first_lost
            if self._wanted(broken):
                prefix = "" if isinstance(error, DamagedFileError) else "cannot be read any further: "
                yield BadRecord(line=broken, reason=f"{prefix}{error}")

    def _found(self) -> Iterator[_Record]:
        match self._kind:
            case "text":
                with open_decompressed(self._part.file) as stream:
                    make_parts = partial(utf8_text, stream.read())
                yield _Record(position=None, number=None, make_parts=make_parts)
            case "tar":
                for number, make_text in read_members(self._part.file):
                    yield _Record(position=number, number=number, make_parts=make_text)
            case "parquet":
                for number, make_text in read_rows(self._part, self._reading.text_field):
                    yield _Record(position=number, number=number, make_parts=make_text)
            case "lines" | "jsonl":
                yield from self._lines()

    def _lines(self) -> Iterator[_Record]:
        is_json = self._kind == "jsonl"
        for line in read_lines(self._part, self._reading):
            if is_json and line.content.isspace():
                continue
            make_parts = (
                partial(json_text, line.content, self._reading.text_field)
                if is_json
                else partial(utf8_text, line.content.rstrip(b"\r\n"))
            )
            yield _Record(position=line.position, number=line.number, make_parts=make_parts)

    def _understood(self, record: _Record) -> Document | BadRecord:
        try:
            return Document(position=record.position, parts=record.make_parts())
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 at byte {error.start}: {error.reason}"
        except BadRecordError as error:
            reason = str(error)
        line = None if record.number is None else self._num_lines_before + record.number
        return BadRecord(line=line, reason=reason)

    @cached_property
    def _num_lines_before(self) -> int:
        is_numbered_by_range = self._kind != "parquet" and is_cuttable(self._part.file, self._reading)
        return count_lines_before(self._part) if is_numbered_by_range and self._part.start > 0 else 0
