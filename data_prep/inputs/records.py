"""The documents in one input file, and its records without text."""

import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

from data_prep.inputs.content_check import HEAD_BYTES, foreign_content
from data_prep.inputs.documents import InputFile, compression_of, file_format
from data_prep.inputs.json_records import json_text
from data_prep.inputs.lines import count_lines_before, read_lines
from data_prep.inputs.opening import DAMAGE, DamagedFileError, open_decompressed
from data_prep.inputs.parquet_records import read_rows
from data_prep.inputs.ranges import FileRange, full_range, is_cuttable
from data_prep.inputs.tar_records import read_members
from data_prep.inputs.texts import (
    BadRecordError,
    ForeignRecordError,
    Parts,
    shown,
    too_large,
    utf8_text,
    without_mark,
)
from data_prep.manifest import ReadSettings
from pipeline.shared.errors import DataError

# If none of the first records of a file has the form that its kind and the settings promise, it is lost.
RECORDS_OF_A_LOST_FILE = 100
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A text. ``position`` identifies it in its file; it is None if the file is one document.

    ``number`` counts the records of its range.
    """

    position: int | None
    parts: Parts
    number: int | None = field(default=None, compare=False)

    @property
    def is_empty(self) -> bool:
        """Whether the text is empty."""
        return self.parts == ()

    @property
    def text(self) -> str:
        """The text in one string."""
        return "".join(self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRecord:
    """A record without a document, and why.

    ``line`` counts lines, rows or tar members of the file from 1; it is None if the file is one document.
    With ``is_foreign`` other records of the file are likely to be bad for the same reason.
    """

    line: int | None
    reason: str
    is_foreign: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A file that cannot be read from a record on, and why; ``line`` is None if all of it is lost."""

    line: int | None
    reason: str


# Selects records by their position.
Choice = Callable[[int | None], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """One record before it is parsed; ``number`` counts from the beginning of the range."""

    position: int | None
    number: int | None
    make_parts: Callable[[], Parts]


def holds_many(file: InputFile, reading: ReadSettings) -> bool:
    """Tell whether a file may hold more than one document."""
    return file_format(file.path, reading) != "text"


def document_name(file: InputFile, position: int | None) -> str:
    """Return the unique name of a document, which determines its split.

    Args:
        file: the file of the document.
        position: None if the file is one document. Otherwise the byte at which its line begins, so that the
            name does not depend on how the file is divided; or the number of the line, row or member, in
            files that are read from their beginning or store the numbers of rows.
    """
    return file.path if position is None else f"{file.path}:{position}"


def read_records(
    part: FileRange, reading: ReadSettings, wanted: Choice = lambda position: True
) -> Iterator[Document | BadRecord | Loss]:
    """Read the documents of a range in order, one in memory at a time.

    After a bad record reading continues. After a loss there is nothing more to read.

    Args:
        part: the range to read.
        reading: where in a record the text is.
        wanted: selects records by their positions; others are not parsed.
    Raises:
        DataError: the file was removed or changed since it was listed, or cannot be read over the network.
    """
    is_checked = False
    for record in _Reader(part, reading, wanted).records():
        if not is_checked and isinstance(record, BadRecord) and record.is_foreign:
            if (loss := _foreign_file(part.file, reading)) is not None:
                yield loss
                return
            is_checked = True
        is_checked = is_checked or isinstance(record, Document)
        yield record


def line_of(document: Document, part: FileRange, reading: ReadSettings) -> int | None:
    """Return the number of a document's line, row or member in its file; lines before a range are counted."""
    if document.number is None or not _is_numbered_by_range(part, reading):
        return document.number
    return count_lines_before(part) + document.number


def _is_numbered_by_range(part: FileRange, reading: ReadSettings) -> bool:
    is_parquet = file_format(part.file.path, reading) == "parquet"
    return not is_parquet and is_cuttable(part.file, reading) and part.start > 0


def _foreign_file(file: InputFile, reading: ReadSettings) -> Loss | None:
    """Return the loss of a file of which none of the first records has text, for the same kind of reason."""
    reasons: Counter[str] = Counter()
    records = _Reader(full_range(file), reading, lambda position: True).records()
    for record in itertools.islice(records, RECORDS_OF_A_LOST_FILE):
        if isinstance(record, Document):
            return None
        if isinstance(record, BadRecord) and record.is_foreign:
            reasons[record.reason] += 1
    return Loss(line=None, reason=reasons.most_common(1)[0][0]) if reasons else None


class _Reader:
    """A reader of one range."""

    def __init__(self, part: FileRange, reading: ReadSettings, wanted: Choice) -> None:
        self._part = part
        self._reading = reading
        self._wanted = wanted
        self._kind = file_format(part.file.path, reading)

    def records(self) -> Iterator[Document | BadRecord | Loss]:
        number: int | None = None
        try:
            for record in self._found():
                number = record.number
                if self._wanted(record.position):
                    yield self._parsed(record)
        except DAMAGE as error:
            yield self._loss(error, number)

    def _loss(self, error: Exception, number: int | None) -> Loss:
        """Describe damage that ends the reading after record ``number`` of the range."""
        first = getattr(error, "number", None) or (number or 0) + 1
        is_whole = self._kind == "text" or (first == 1 and self._part.start == 0)
        prefix = "" if isinstance(error, DamagedFileError) else "it cannot be read any further: "
        return Loss(
            line=None if is_whole else self._num_lines_before + first,
            reason=f"{prefix}{error or type(error).__name__}",
        )

    def _found(self) -> Iterator[_Record]:
        if self._kind == "parquet":
            for number, make_text in read_rows(self._part, self._reading):
                yield _Record(position=number, number=number, make_parts=make_text)
            return
        with open_decompressed(self._part.file) as stream:
            if self._kind == "text":
                yield _Record(position=None, number=None, make_parts=self._whole_text(stream))
                return
            if self._part.start == 0:
                self._check_content(stream.peek(HEAD_BYTES)[:HEAD_BYTES])
            if self._kind == "tar":
                for number, make_parts in read_members(stream, self._reading):
                    yield _Record(position=number, number=number, make_parts=make_parts)
            else:
                yield from self._lines(stream)

    def _check_content(self, head: bytes) -> None:
        if (finding := foreign_content(head, self._kind, self._reading.text_field)) is not None:
            raise DamagedFileError(finding, number=1)

    def _whole_text(self, stream: io.BufferedReader) -> Callable[[], Parts]:
        most = self._reading.max_record_bytes
        if compression_of(self._part.file.path) is None:
            self._check_content(stream.peek(1)[:HEAD_BYTES])
            content = stream.read() if self._part.file.size_bytes <= most else None
        else:
            content = _read_at_most(stream, most)
        if content is None:
            return partial(_refuse_size, self._reading)
        self._check_content(content[:HEAD_BYTES])
        return partial(utf8_text, without_mark(content))

    def _lines(self, stream: io.BufferedReader) -> Iterator[_Record]:
        is_json = self._kind == "jsonl"
        for line in read_lines(self._part, self._reading, stream):
            content = line.content
            if content is not None and line.number == 1 and self._part.start == 0:
                content = without_mark(content)
            make_parts: Callable[[], Parts]
            if content is None:
                make_parts = partial(_refuse_size, self._reading)
            elif not is_json:
                make_parts = partial(utf8_text, content.rstrip(b"\r\n"))
            elif content.isspace() or not content:
                continue
            else:
                make_parts = partial(json_text, content, self._reading.text_field)
            yield _Record(position=line.position, number=line.number, make_parts=make_parts)

    def _parsed(self, record: _Record) -> Document | BadRecord:
        try:
            return Document(position=record.position, parts=record.make_parts(), number=record.number)
        except (DataError, *DAMAGE):
            raise  # not of this record, but of the file or the network
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 at byte {error.start}: {error.reason}"
            is_foreign = False
        except BadRecordError as error:
            reason = str(error)
            is_foreign = isinstance(error, ForeignRecordError)
        except Exception as error:  # of any library about this record
            reason = f"{type(error).__name__}: {shown(str(error))}"
            is_foreign = False
        line = None if record.number is None else self._num_lines_before + record.number
        return BadRecord(line=line, reason=reason, is_foreign=is_foreign)

    @cached_property
    def _num_lines_before(self) -> int:
        is_numbered_by_range = _is_numbered_by_range(self._part, self._reading)
        return count_lines_before(self._part) if is_numbered_by_range else 0


def _refuse_size(reading: ReadSettings) -> Parts:
    raise BadRecordError(too_large(reading))


def _read_at_most(stream: io.BufferedReader, num_bytes: int) -> bytes | None:
    """Read to the end; return None if there are more bytes."""
    blocks: list[bytes] = []
    remaining = num_bytes
    while block := stream.read(min(_BLOCK_BYTES, remaining + 1)):
        blocks.append(block)
        remaining -= len(block)
        if remaining < 0:
            return None
    return b"".join(blocks)
