"""The text of a document, in parts: a long one is never in memory as a whole string.

Text is one to four times as large in memory as on disk, and every step of its way makes another copy. So the
bytes of a long document are kept, and made into strings of about :data:`PART_BYTES` one after the other.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

PART_BYTES = 1 << 20
LONGEST_SHOWN_CHARACTERS = 60
# the longest that belongs together in a JSON string: a character outside the basic plane, as two escapes
_LONGEST_ESCAPE_BYTES = 12

# Strings that make the text when joined; none of them for an empty text
Parts = Iterable[str]


@dataclass(frozen=True, slots=True)
class LongText:
    """A text that is made anew, part by part, every time it is iterated."""

    make_parts: Callable[[], Iterator[str]]

    def __iter__(self) -> Iterator[str]:
        return self.make_parts()


def short_text(text: str) -> Parts:
    """The parts of a text that is a string already."""
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
    """Decode what stands between the quotes of a JSON string.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        json.JSONDecodeError: it has a wrong escape or a control character.
        UnicodeEncodeError: an escape is half a character.
    """
    return _checked(lambda: _json_parts(literal))


def _checked(make_parts: Callable[[], Iterator[str]]) -> LongText:
    """A text of which all parts can be made: whoever writes them away cannot take them back."""
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

    A part that is cut inside a character or an escape cannot be decoded, so the cut moves back until it can.
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
    """The record at hand holds no text; the message says why."""


def shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN_CHARACTERS else f"{text[:LONGEST_SHOWN_CHARACTERS]}..."
