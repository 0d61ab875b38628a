"""Ranges of input files, which workers read independently of each other.

A range is a run of bytes. It owns the lines, or the parquet row groups, that begin in it, wherever they end.
So adjacent ranges divide a file exactly, and a file can be divided without reading it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from data_prep.inputs.documents import InputFile, compression_of, file_format
from data_prep.manifest import ReadSettings

_CUTTABLE_FORMATS = ("lines", "jsonl", "parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRange:
    """Bytes ``start`` to ``stop`` of a file; all bytes of a file that cannot be divided."""

    file: InputFile
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        """Length of the range."""
        return self.stop - self.start


def full_range(file: InputFile) -> FileRange:
    """Return the range of all bytes of a file."""
    return FileRange(file=file, start=0, stop=file.size_bytes)


def is_cuttable(file: InputFile, reading: ReadSettings) -> bool:
    """Tell whether a file can be divided: the start of a record must be found without reading all before it.

    Compressed files and tars can only be read from their beginning, and a plain text file is one document.
    """
    return compression_of(file.path) is None and file_format(file.path, reading) in _CUTTABLE_FORMATS


def cut(file: InputFile, num_ranges: int) -> list[FileRange]:
    """Divide a file into ranges of equal length, up to one byte."""
    bounds = [file.size_bytes * number // num_ranges for number in range(num_ranges + 1)]
    return [FileRange(file=file, start=start, stop=stop) for start, stop in pairwise(bounds)]


def ranges_fingerprint(ranges: Iterable[FileRange], reading: ReadSettings) -> str:
    """Return the SHA-256 over path, size and modification time of the file and bounds of every range."""
    digest = hashlib.sha256()
    for each in ranges:
        line = f"{each.file.path}\0{each.file.size_bytes}\0{each.file.modified_ns}"
        if is_cuttable(each.file, reading):
            line += f"\0{each.start}\0{each.stop}"
        digest.update((line + "\n").encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
