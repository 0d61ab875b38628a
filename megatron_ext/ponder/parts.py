"""Runs of rows that are worked on at a time, so that what is as wide as the vocabulary stays small."""

from collections.abc import Iterator

PART_ELEMENTS = 2**24
"""Elements of a part: 64 MiB in float32, about the second cache of large devices."""


def parts(num_rows: int, width: int) -> Iterator[slice]:
    """Yield consecutive runs of rows, each of about PART_ELEMENTS elements in rows of `width` elements."""
    length = max(PART_ELEMENTS // width, 1)
    for start in range(0, num_rows, length):
        yield slice(start, min(start + length, num_rows))
