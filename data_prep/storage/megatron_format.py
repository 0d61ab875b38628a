"""The format of a Megatron pair on disk.

``.bin`` holds the tokens of all documents, one after the other. ``.idx`` holds, little-endian::

    magic, version, token type                 9 bytes, uint64, uint8
    num_sequences, num_documents + 1           uint64 each
    tokens of each sequence                    int32  [sequences]
    where each sequence begins in .bin, bytes  int64  [sequences]
    first sequence of each document, and end   int64  [documents + 1]

Here every document is one sequence.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import TokenType
from data_prep.storage.shard_format import token_dtype
from data_prep.storage.token_file import TokenFile
from pipeline.shared.errors import DataError

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\0\0"
_VERSION = 1
_TYPE_CODES: dict[TokenType, int] = {"uint16": 8, "int32": 4}
_LENGTH, _PLACE = np.dtype("<i4"), np.dtype("<i8")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexLayout:
    """The offsets of the parts of an index, for a number of documents."""

    num_documents: int

    @property
    def lengths_byte(self) -> int:
        """First byte of the sequences' lengths."""
        return _HEADER.size

    @property
    def places_byte(self) -> int:
        """First byte of the sequences' places in ``.bin``."""
        return self.lengths_byte + self.num_documents * _LENGTH.itemsize

    @property
    def documents_byte(self) -> int:
        """First byte of the documents' first sequences."""
        return self.places_byte + self.num_documents * _PLACE.itemsize

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.documents_byte + (self.num_documents + 1) * _PLACE.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class PairRun:
    """The place of a run of documents in a pair."""

    first_token: int
    first_document: int


def write_index_header(descriptor: int, layout: IndexLayout, token_type: TokenType) -> None:
    """Write the parts that do not depend on the documents' lengths."""
    count = layout.num_documents
    header = _HEADER.pack(_MAGIC, _VERSION, _TYPE_CODES[token_type], count, count + 1)
    write_at(descriptor, header, 0)
    end = np.array([count], dtype=_PLACE)
    write_at(descriptor, end.data, layout.num_bytes - _PLACE.itemsize)


def write_index_run(
    descriptor: int, layout: IndexLayout, lengths: NDArray[np.int64], run: PairRun, token_type: TokenType
) -> None:
    """Write the index entries of a run of documents; runs can be written concurrently and in any order.

    Args:
        descriptor: the index.
        layout: of the complete index.
        lengths: [documents of the run], tokens of each.
        run: its place in the pair.
        token_type: stored type of a token.
    """
    token_bytes = token_dtype(token_type).itemsize
    starts = run.first_token + np.cumsum(lengths) - lengths
    numbers = run.first_document + np.arange(len(lengths))
    for values, dtype, first_byte in (
        (lengths, _LENGTH, layout.lengths_byte),
        (starts * token_bytes, _PLACE, layout.places_byte),
        (numbers, _PLACE, layout.documents_byte),
    ):
        write_at(descriptor, values.astype(dtype).data, first_byte + run.first_document * dtype.itemsize)


def read_lengths(path: Path, *, first_document: int, num_documents: int) -> NDArray[np.int64]:
    """Return [documents]: tokens of each document of a run.

    Raises:
        DataError: the file is not an index, is truncated, or has documents of several sequences.
    """
    try:
        file = TokenFile(path)
        header = file.read(np.dtype(np.uint8), offset_bytes=0, count=_HEADER.size)
    except DataError as error:
        raise _damaged(path, f"it cannot be read: {error}") from error
    magic, version, _, num_sequences, num_ends = _HEADER.unpack(header.tobytes())
    layout = IndexLayout(num_documents=num_sequences)
    if (magic, version, num_ends) != (_MAGIC, _VERSION, num_sequences + 1):
        raise _damaged(path, "its header is different")
    if file.size_bytes != layout.num_bytes:
        raise _damaged(path, f"it must have {layout.num_bytes} bytes, but has {file.size_bytes}")
    if first_document + num_documents > num_sequences:
        raise _damaged(path, f"it has {num_sequences} documents, fewer than its manifest says")
    first_byte = layout.lengths_byte + first_document * _LENGTH.itemsize
    lengths = file.read(_LENGTH, offset_bytes=first_byte, count=num_documents).astype(np.int64)
    if (lengths < 1).any():
        raise _damaged(path, "a document has no token")
    return lengths


def write_at(descriptor: int, content: bytes | memoryview, offset_bytes: int) -> None:
    """Write bytes at an offset of a file; threads may write to the same file."""
    view = memoryview(content).cast("B") if len(content) else memoryview(b"")
    while view:
        num_written = os.pwrite(descriptor, view, offset_bytes)
        view, offset_bytes = view[num_written:], offset_bytes + num_written


def _damaged(path: Path, finding: str) -> DataError:
    return DataError(
        f"{path} must be an intact Megatron index with one sequence per document, but {finding}; "
        "write the pair again"
    )
