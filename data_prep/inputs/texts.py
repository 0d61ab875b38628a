"""The text of a document in parts, so that a long one is never in memory as one string.

A string takes one to four times the memory of its bytes, and every processing step makes another copy. So
only the bytes of a long document are kept; they are decoded in parts of about :data:`PART_BYTES`.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from data_prep.manifest import ReadSettings

PART_BYTES = 1 << 20
LONGEST_SHOWN_CHARACTERS = 60
# Editors of some systems put it at the start of text files; it is not text.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# The longest unit of a JSON string: a character outside the basic plane, as two escapes.
_LONGEST_ESCAPE_BYTES = 12

# Strings that are the text when joined; none for an empty text.
Parts = Iterable[str]


@dataclass(frozen=True, slots=True)
class LongText:
    """A text that is decoded part by part, every time it is iterated."""

    make_parts: Callable[[], Iterator[str]]

    def __iter__(self) -> Iterator[str]:
        return self.make_parts()


def without_mark(content: bytes) -> bytes:
    """Return the content of a text file without a byte-order mark at its start; one inside a text stays."""
    return content.removeprefix(BYTE_ORDER_MARK)


def short_text(text: str) -> Parts:
    """Return the parts of a text that is a string already."""
    return (text,) if text else ()


def utf8_text(content: bytes | memoryview) -> Parts:
    """Decode bytes.

    Raises:
        UnicodeDecodeError: they are not UTF-8.
    """
    if len(content) <= PART_BYTES:
        return short_text(str(content, "utf-8"))
    return _checked(lambda: _utf8_parts(content))


def json_string_text(literal: memoryview) -> Parts:
    """Decode the content of a JSON string, without its quotes.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        json.JSONDecodeError: it has an invalid escape or a control character.
        UnicodeEncodeError: an escape is half a character.
    """
    return _checked(lambda: _json_parts(literal))


def _checked(make_parts: Callable[[], Iterator[str]]) -> LongText:
    """Decode all parts once, before any of them is written: a writer cannot undo what it has written."""
    for _ in make_parts():
        pass
    return LongText(make_parts)


def _utf8_parts(content: bytes | memoryview) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(content), PART_BYTES):
        part = content[start : start + PART_BYTES]
        num_held_bytes = len(decoder.getstate()[0])
        try:
            yield decoder.decode(part, final=start + PART_BYTES >= len(content))
        except UnicodeDecodeError as error:
            error.start += start - num_held_bytes
            raise


def _json_parts(literal: memoryview) -> Iterator[str]:
    start = 0
    while start < len(literal):
        text, start = _json_part(literal, start)
        yield text


def _json_part(literal: memoryview, start: int) -> tuple[str, int]:
    """Return a part and where the next one begins.

    A part that ends inside a character or an escape cannot be decoded, so its end moves back until it can.
    """
    wanted = min(start + PART_BYTES, len(literal))
    last = wanted if wanted == len(literal) else wanted - _LONGEST_ESCAPE_BYTES
    for stop in range(wanted, last - 1, -1):
        try:
            text: str = json.loads(f'"{str(literal[start:stop], "utf-8")}"')
            text.encode("utf-8")
        except (json.JSONDecodeError, UnicodeError):
            if stop == last:
                raise
        else:
            return text, stop
    raise AssertionError("the loop returns or raises")


class BadRecordError(Exception):
    """A record has no text; the message is the reason."""


def check_size(num_bytes: int, reading: ReadSettings) -> None:
    """Check that a record is not too large to be held in memory.

    Raises:
        BadRecordError: it is.
    """
    if num_bytes > reading.max_record_bytes:
        raise BadRecordError(too_large(reading, num_bytes))


def too_large(reading: ReadSettings, num_bytes: int | None = None) -> str:
    """Return why a record of a size, or of an unknown one, is bad."""
    size = f"has {num_bytes}" if num_bytes is not None else "has more"
    return f"a record may have {reading.max_record_bytes} bytes, but {size}; see --max-record-bytes"


class ForeignRecordError(BadRecordError):
    """A record has another form than the records of its kind of file; a file of such records is lost."""


def shown(value: object) -> str:
    """Render a value for a message, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN_CHARACTERS else f"{text[:LONGEST_SHOWN_CHARACTERS]}..."
