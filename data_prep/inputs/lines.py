"""The lines of a file or of a range of it, with their positions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from data_prep.inputs.opening import open_decompressed, open_input
from data_prep.inputs.ranges import FileRange, is_cuttable
from data_prep.manifest import ReadSettings

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line with its end.

    Attributes:
        position: byte at which it begins; its number in a compressed file, where offsets are meaningless.
        number: counted from 1 at the first line of the range.
    """

    position: int
    number: int
    content: bytes


def read_lines(part: FileRange, reading: ReadSettings) -> Iterator[Line]:
    """Read the lines that begin in a range, one in memory at a time."""
    if not is_cuttable(part.file, reading):
        with open_decompressed(part.file) as stream:
            for number, content in enumerate(stream, start=1):
                yield Line(position=number, number=number, content=content)
        return
    with open_input(part.file) as stream:
        position = _first_line_start(stream, part.start)
        number = 0
        while position < part.stop:
            content = stream.readline()
            number += 1
            yield Line(position=position, number=number, content=content)
            position += len(content)


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
