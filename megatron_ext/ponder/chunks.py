"""Which tokens of a row each of C ranks holds, and which keys the rows of a rank's tokens see.

A row of S tokens is cut into 2C equal chunks. Rank r holds chunks r and 2C - 1 - r: a late chunk sees many
keys and an early one few, so that all ranks have equally much to do in causal attention. A token's slots stay
together, so that everything but attention works on a rank's own rows.

"By rank" is the order in which a collective over the ranks returns rows: those of rank 0, of rank 1, ...
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megatron_ext.ponder.attention import Segments
from megatron_ext.ponder.documents import Documents


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Consecutive queries of a rank, and the keys of the whole row that they see.

    Attributes:
        batch: the sequences that it concerns.
        queries: among the rank's own rows.
        before: keys of which each query sees all; may be empty.
        own: the keys of the queries' own rows, of which query i sees keys 0..i.
        documents: where the queries are of several documents, else None: their lengths, of the queries and of
            all keys, which begin with those before. A query sees keys of its document only.
    """

    batch: slice
    queries: slice
    before: slice
    own: slice
    documents: Documents | None = None


def chunks_of_rank(rank: int, size: int) -> tuple[int, int]:
    """Return the two chunks that a rank holds, of 2 * size."""
    return rank, 2 * size - 1 - rank


def own_chunks(values: Tensor, rank: int, size: int, *, dim: int) -> Tensor:
    """Return a rank's share of whole rows.

    Args:
        values: whole rows, S along `dim`; 2 * size divides S.
        rank: r.
        size: C.
        dim: of the tokens or their slots.
    Returns:
        S / size along `dim`.
    """
    chunks = values.chunk(2 * size, dim)
    first, second = chunks_of_rank(rank, size)
    return torch.cat([chunks[first], chunks[second]], dim)


def whole_from_ranks(values: Tensor, size: int) -> Tensor:
    """Bring rows that are ordered by rank into the order of the text: [S, ...] -> [S, ...]."""
    order = sorted(range(2 * size), key=_chunks_by_rank(size).__getitem__)
    return _reordered(values, order)


def ranks_from_whole(values: Tensor, size: int) -> Tensor:
    """Undo :func:`whole_from_ranks`."""
    return _reordered(values, _chunks_by_rank(size))


def pieces_of_rank(
    rank: int, size: int, *, batch_size: int, num_rows: int, segments: Segments | None
) -> tuple[Piece, ...]:
    """Return what the rows of a rank attend to.

    Args:
        rank: r.
        size: C.
        batch_size: B.
        num_rows: R of the whole rows; 2 * size divides it.
        segments: documents of each sequence as runs of the whole rows, or None where each is one.
    Returns:
        Pieces that cover the rank's own rows of every sequence.
    """
    length = num_rows // (2 * size)
    pieces = []
    for place, chunk in enumerate(chunks_of_rank(rank, size)):
        start, stop = chunk * length, (chunk + 1) * length
        shift = place * length - start
        if segments is None:
            pieces.append(_piece(slice(0, batch_size), 0, start, stop, shift))
            continue
        for b, runs in enumerate(segments):
            pieces += [
                _piece(slice(b, b + 1), first, max(first, start), min(last, stop), shift)
                for first, last in runs
                if first < stop and last > start
            ]
    return tuple(pieces)


def chunks_of_documents(
    rank: int, size: int, *, batch_size: int, num_rows: int, segments: Segments | None
) -> tuple[Piece, ...]:
    """Return the same as :func:`pieces_of_rank`, a piece for each chunk, for kernels that take documents."""
    if segments is None:
        return pieces_of_rank(rank, size, batch_size=batch_size, num_rows=num_rows, segments=None)
    length = num_rows // (2 * size)
    return tuple(
        _chunk(b, place, chunk * length, (chunk + 1) * length, runs)
        for place, chunk in enumerate(chunks_of_rank(rank, size))
        for b, runs in enumerate(segments)
    )


def _chunk(sequence: int, place: int, start: int, stop: int, runs: tuple[tuple[int, int], ...]) -> Piece:
    """Rows [start, stop) of a sequence, which are the rank's first or second chunk."""
    seen = [(first, min(last, stop)) for first, last in runs if first < stop and last > start]
    first_row = seen[0][0]
    shift = place * (stop - start) - start
    return replace(
        _piece(slice(sequence, sequence + 1), first_row, start, stop, shift),
        documents=Documents(
            queries=tuple(last - max(first, start) for first, last in seen),
            keys=tuple(last - first for first, last in seen),
        ),
    )


def _piece(batch: slice, first: int, start: int, stop: int, shift: int) -> Piece:
    """Rows [start, stop) of a document that begins at `first`; `shift` leads to the rank's own rows."""
    return Piece(
        batch=batch,
        queries=slice(start + shift, stop + shift),
        before=slice(first, start),
        own=slice(start, stop),
    )


def _chunks_by_rank(size: int) -> list[int]:
    return [chunk for rank in range(size) for chunk in chunks_of_rank(rank, size)]


def _reordered(values: Tensor, order: list[int]) -> Tensor:
    chunks = values.chunk(len(order), dim=0)
    return torch.cat([chunks[number] for number in order])
