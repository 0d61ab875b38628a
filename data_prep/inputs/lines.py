"""The lines of a file or of a range of it, with their positions."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO

from data_prep.inputs.opening import DamagedFileError, open_input
from data_prep.inputs.ranges import FileRange, is_cuttable
from data_prep.manifest import ReadSettings

_BLOCK_BYTES = 1 << 20
# A line that is too long is skipped up to so many times the largest size; after that the file is lost.
LONGEST_SKIP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line with its end.

    Attributes:
        position: byte at which it begins; its number in a compressed file, where offsets are meaningless.
        number: counted from 1 at the first line of the range.
        content: None if it is longer than a record may be.
    """

    position: int
    number: int
    content: bytes | None


def read_lines(part: FileRange, reading: ReadSettings, stream: io.BufferedReader) -> Iterator[Line]:
    """Read the lines that begin in a range, one in memory at a time.

    Args:
        part: the range.
        reading: with the largest size of a line.
        stream: the decompressed content of its file.
    Raises:
        DamagedFileError: a line has no end within many times that size.
    """
    is_numbered = not is_cuttable(part.file, reading)
    position = 0 if is_numbered else _first_line_start(stream, part.start)
    number = 0
    # One byte more, which tells a line of that size from a longer one.
    read = partial(stream.readline, reading.max_record_bytes + 1)
    while (is_numbered or position < part.stop) and (content := read()):
        number += 1
        num_bytes = len(content)
        start = number if is_numbered else position
        if num_bytes <= reading.max_record_bytes or content.endswith(b"\n"):
            yield Line(position=start, number=number, content=content)
        else:
            del content
            num_bytes += _skip_line(stream, LONGEST_SKIP * reading.max_record_bytes)
            yield Line(position=start, number=number, content=None)
        position += num_bytes


def _skip_line(stream: io.BufferedReader, longest: int) -> int:
    """Read to the end of a line; return the number of bytes."""
    num_bytes = 0
    while content := stream.readline(_BLOCK_BYTES):
        num_bytes += len(content)
        if content.endswith(b"\n"):
            break
        if num_bytes > longest:
            raise DamagedFileError(f"a line has more than {num_bytes} bytes and no end")
    return num_bytes


def count_lines_before(part: FileRange) -> int:
    """Return the number of lines that begin before a range.

    Reads the file up to the range, so it is used only for messages.
    """
    with open_input(part.file) as stream:
        end = _first_line_start(stream, part.start)
        stream.seek(0)
        return sum(block.count(b"\n") for block in _blocks(stream, end))


def _first_line_start(stream: IO[bytes], start: int) -> int:
    """Seek to the first line that begins at ``start`` or later, and return its position."""
    if start == 0:
        return 0
    # The byte before shows whether a line begins at start itself.
    stream.seek(start - 1)
    while content := stream.readline(_BLOCK_BYTES):
        if content.endswith(b"\n"):
            break
    return stream.tell()


def _blocks(stream: IO[bytes], num_bytes: int) -> Iterator[bytes]:
    while num_bytes > 0 and (block := stream.read(min(num_bytes, _BLOCK_BYTES))):
        num_bytes -= len(block)
        yield block
