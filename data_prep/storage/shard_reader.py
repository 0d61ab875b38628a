"""Read the documents of one shard, for inspection and checks; training reads through an index."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.storage.shard_format import ArrayPlace, locate_members


def iterate_documents(path: Path, eod_id: int) -> Iterator[NDArray[np.integer]]:
    """Yield the tokens of each document in order, including its end-of-document token."""
    parts: list[NDArray[np.integer]] = []
    for piece in iterate_pieces(path):
        parts.append(piece)
        if piece[-1] == eod_id:
            yield np.concatenate(parts)
            parts = []


def document_lengths(path: Path, eod_id: int) -> NDArray[np.int64]:
    """Return [documents]: tokens of each document, with its end-of-document token; few tokens are read."""
    content = np.memmap(path, dtype=np.uint8, mode="r")
    found: list[NDArray[np.int64]] = []
    begun = 0
    for member in locate_members(path):
        lengths = read_array(content, member.lengths).astype(np.int64)
        lengths[0] += begun
        begun = 0
        # Only the last piece of a sample can belong to a document that continues.
        if read_array(content, member.tokens)[-1] != eod_id:
            begun, lengths = int(lengths[-1]), lengths[:-1]
        found.append(lengths)
    return np.concatenate([np.empty(0, dtype=np.int64), *found])


def iterate_pieces(path: Path) -> Iterator[NDArray[np.integer]]:
    """Yield the document pieces of a shard as they are stored."""
    content = np.memmap(path, dtype=np.uint8, mode="r")
    for member in locate_members(path):
        lengths = read_array(content, member.lengths)
        tokens = read_array(content, member.tokens)
        yield from np.split(tokens, np.cumsum(lengths)[:-1])


def read_array(content: NDArray[np.uint8], place: ArrayPlace) -> NDArray[np.integer]:
    """Return a view of an array inside the mapped bytes of a shard."""
    num_bytes = place.count * place.dtype.itemsize
    values: NDArray[np.integer] = content[place.offset_bytes : place.offset_bytes + num_bytes].view(
        place.dtype
    )
    return values
