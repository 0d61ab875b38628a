"""Read the documents of one shard, for inspection and checks; training reads through an index."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.storage.shard_format import ArrayPlace, locate_members
from data_prep.storage.token_file import TokenFile
from pipeline.shared.errors import DataError


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
    file = TokenFile(path)
    found: list[NDArray[np.int64]] = []
    begun = 0
    for member in locate_members(path):
        lengths = read_array(file, member.lengths).astype(np.int64)
        lengths[0] += begun
        begun = 0
        # Only the last piece of a sample can belong to a document that continues.
        if read_array(file, member.tokens.last())[0] != eod_id:
            begun, lengths = int(lengths[-1]), lengths[:-1]
        found.append(lengths)
    return np.concatenate([np.empty(0, dtype=np.int64), *found])


def iterate_pieces(path: Path) -> Iterator[NDArray[np.integer]]:
    """Yield the document pieces of a shard as they are stored."""
    file = TokenFile(path)
    for member in locate_members(path):
        lengths = read_array(file, member.lengths)
        tokens = read_array(file, member.tokens)
        if lengths.min() < 1 or lengths.sum(dtype=np.int64) != len(tokens):
            raise DataError(
                f"{path} must hold the pieces that its lengths say, but sample {member.key} has other ones; "
                "delete the file and run `megaponder data prepare` again: it makes missing shards again"
            )
        yield from np.split(tokens, np.cumsum(lengths)[:-1])


def read_array(file: TokenFile, place: ArrayPlace) -> NDArray[np.integer]:
    """Read an array of a shard.

    Raises:
        DataError: the shard is shorter than it was.
    """
    return file.read(place.dtype, offset_bytes=place.offset_bytes, count=place.count)
