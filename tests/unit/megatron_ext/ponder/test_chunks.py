"""Chunks of rows on the ranks of a context axis: every token once, balanced, and what it sees."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megatron_ext.ponder.attention import Segments
from megatron_ext.ponder.chunks import (
    Piece,
    chunks_of_documents,
    chunks_of_rank,
    own_chunks,
    pieces_of_rank,
    ranks_from_whole,
    whole_from_ranks,
)
from megatron_ext.ponder.documents import Documents

SEGMENTS: Segments = (((0, 5), (5, 6), (6, 24)), ((0, 24),))


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_token_is_on_one_rank_and_comes_back_in_order(size: int) -> None:
    whole = torch.arange(24).reshape(12, 2)

    by_rank = torch.cat([own_chunks(whole, rank, size, dim=0) for rank in range(size)])

    assert torch.equal(whole_from_ranks(by_rank, size), whole)
    assert torch.equal(ranks_from_whole(whole, size), by_rank)


def test_a_rank_holds_an_early_and_a_late_chunk() -> None:
    assert [chunks_of_rank(rank, 3) for rank in range(3)] == [(0, 5), (1, 4), (2, 3)]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("segments", [None, SEGMENTS])
@pytest.mark.parametrize("cut", [pieces_of_rank, chunks_of_documents])
def test_pieces_are_causal_attention_within_documents(
    cut: Callable[..., tuple[Piece, ...]], size: int, segments: Segments | None
) -> None:
    batch_size, num_rows = 2, 24
    runs = segments or (((0, num_rows),),) * batch_size
    document = torch.zeros(batch_size, num_rows, dtype=torch.int64)
    for b, of_sequence in enumerate(runs):
        for number, (start, stop) in enumerate(of_sequence):
            document[b, start:stop] = number
    expected = torch.ones(num_rows, num_rows).tril() * (document.unsqueeze(2) == document.unsqueeze(1))

    seen = [_seen(rank, size, batch_size, num_rows, segments, cut) for rank in range(size)]
    found = whole_from_ranks(torch.cat(seen), size)

    assert torch.equal(found.transpose(0, 1), expected)


def test_a_chunk_tells_where_its_documents_begin_among_queries_and_keys() -> None:
    _, chunk = chunks_of_documents(0, 1, batch_size=1, num_rows=24, segments=SEGMENTS[:1])

    # Rows 12 to 23 are the end of a document that begins at 6.
    assert (chunk.queries, chunk.before, chunk.own) == (slice(12, 24), slice(6, 12), slice(12, 24))
    assert chunk.documents == Documents(queries=(12,), keys=(18,))
    first, *_ = chunks_of_documents(0, 1, batch_size=1, num_rows=24, segments=SEGMENTS[:1])
    assert (first.before, first.documents) == (slice(0, 0), Documents(queries=(5, 1, 6), keys=(5, 1, 6)))


def _seen(
    rank: int,
    size: int,
    batch_size: int,
    num_rows: int,
    segments: Segments | None,
    cut: Callable[..., tuple[Piece, ...]] = pieces_of_rank,
) -> Tensor:
    """[R / C, B, R]: how often a rank's queries see each key."""
    seen = torch.zeros(num_rows // size, batch_size, num_rows)
    for piece in cut(rank, size, batch_size=batch_size, num_rows=num_rows, segments=segments):
        if piece.documents is not None:
            _see_documents(seen, piece, piece.documents)
            continue
        seen[piece.queries, piece.batch, piece.before] += 1
        number = piece.own.stop - piece.own.start
        seen[piece.queries, piece.batch, piece.own] += torch.ones(number, number).tril().unsqueeze(1)
    return seen


def _see_documents(seen: Tensor, piece: Piece, documents: Documents) -> None:
    query, key = piece.queries.start, piece.before.start
    for num_queries, num_keys in zip(documents.queries, documents.keys, strict=True):
        # The last query sees all keys of its document.
        causal = torch.ones(num_queries, num_keys).tril(num_keys - num_queries)
        seen[query : query + num_queries, piece.batch, key : key + num_keys] += causal.unsqueeze(1)
        query, key = query + num_queries, key + num_keys
    assert (query, key) == (piece.queries.stop, piece.own.stop)


@pytest.mark.parametrize("size", [2, 4])
def test_all_ranks_attend_to_equally_many_keys(size: int) -> None:
    num_rows = 16

    counts = {
        int(_seen(rank, size, batch_size=1, num_rows=num_rows, segments=None).sum()) for rank in range(size)
    }

    assert len(counts) == 1
