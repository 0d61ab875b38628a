"""Reading the documents of one shard back, for inspection and checks; training reads through an index."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.shard_format import ArrayPlace, locate_members


def iterate_documents(path: Path, eod_id: int) -> Iterator[NDArray[np.integer]]:
    """Yield the tokens of each document, its end-of-document token included, in order."""
    parts: list[NDArray[np.integer]] = []
    for piece in iterate_pieces(path):
        parts.append(piece)
        if piece[-1] == eod_id:
            yield np.concatenate(parts)
            parts = []


def iterate_pieces(path: Path) -> Iterator[NDArray[np.integer]]:
    """Yield the document pieces of a shard as they are stored."""
    content = np.memmap(path, dtype=np.uint8, mode="r")
    for member in locate_members(path):
        lengths = read_array(content, member.lengths)
        tokens = read_array(content, member.tokens)
        yield from np.split(tokens, np.cumsum(lengths)[:-1])


def read_array(content: NDArray[np.uint8], place: ArrayPlace) -> NDArray[np.integer]:
    """View an array inside the mapped bytes of a shard; nothing is copied."""
    num_bytes = place.count * place.dtype.itemsize
    values: NDArray[np.integer] = content[place.offset_bytes : place.offset_bytes + num_bytes].view(
        place.dtype
    )
    return values
