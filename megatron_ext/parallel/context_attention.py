"""Causal attention of a context-parallel rank's queries to the keys of the whole row.

Queries stay. Keys, which carry their weights, and values of all ranks are gathered, once forward and once
again backward, so that a rank keeps its own only; the gradients of all keys go back by one reduce-scatter.
The queries of a chunk see the keys before it, all of them, and their own causally: two calls of a fused
kernel whose results are joined, with no matrix of rows times rows. Packed documents are attended to by one
call for each chunk of a sequence, where the device has a kernel that takes them, and one by one elsewhere.

R = rows of a whole row of text, r = R / C own ones, B = batch, A = query heads, G = key/value heads, w =
channels with those of weights.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_ext.ponder import joined_attention
from megatron_ext.ponder.chunks import Piece
from megatron_ext.ponder.joined_attention import (
    AttendedSet,
    Kernel,
    attend_to_sets,
    attended_set,
    gradients_of_set,
    sum_over_groups,
)
from megatron_ext.ponder.slots import split_slots


class Exchange(Protocol):
    """How rows reach other ranks, see :class:`megatron_ext.parallel.context.ContextAxis`."""

    def gather(self, own: Tensor) -> Tensor:
        """[r, ...] -> [R, ...]."""
        ...

    def add_up(self, whole: Tensor) -> Tensor:
        """[R, ...] -> [r, ...]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRows:
    """The rows of a pass, shared by the ranks of a context axis.

    Attributes:
        exchange: with the other ranks.
        pieces: what this rank's rows attend to, each of one document.
        chunks: the same, each of a whole chunk, for kernels that take documents.
        of_tokens: the same with one row for each token, where a token has several rows, else None.
    """

    exchange: Exchange
    pieces: tuple[Piece, ...]
    chunks: tuple[Piece, ...]
    of_tokens: "SharedRows | None" = None

    def pieces_for(self, kernel: Kernel) -> tuple[Piece, ...]:
        """Return the pieces, as few as the kernel can do with."""
        return self.chunks if kernel.takes_documents else self.pieces


def attention_over_ranks(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    *,
    rows: SharedRows,
    scaled_size: int,
    ran: Sequence[Tensor | None] = (None,),
) -> Tensor:
    """Attend to the keys of the whole row, of one or several steps.

    Args:
        query: [r, B, A, w].
        keys, values: of each step, [r, B, G, w], G a divisor of A.
        rows: which rows see which.
        scaled_size: products of queries and keys are divided by its root.
        ran: for each step the tokens that ran it, bool [B, R], or None for all; the others have no keys.
    Returns:
        [B, A, r, w].
    """
    output: Tensor = _AttentionOverRanks.apply(  # type: ignore[no-untyped-call]
        query, rows, tuple(ran), 1.0 / math.sqrt(scaled_size), *keys, *values
    )
    return output


def last_slot_over_ranks(
    query: Tensor, key: Tensor, value: Tensor, *, num_slots: int, rows: SharedRows, scaled_size: int
) -> Tensor:
    """Let the last slot of each token attend to a pass: it sees all slots of tokens up to its own.

    Args:
        query: [S * n, B, A, w], of which the last slots are used; S of this rank.
        key, value: [S * n, B, G, w].
        num_slots: n, at least 2.
        rows, scaled_size: see :func:`attention_over_ranks`.
    Returns:
        [B, A, S, w].
    """
    assert rows.of_tokens is not None, "tokens have several slots"
    # [S * n, B, A, w] -> n times [S, B, A, w]
    keys, values = (split_slots(x, num_slots).unbind(1) for x in (key, value))
    return attention_over_ranks(
        split_slots(query, num_slots)[:, -1],
        keys,
        values,
        rows=rows.of_tokens,
        scaled_size=scaled_size,
        ran=[None] * num_slots,
    )


class _AttentionOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        rows: SharedRows,
        ran: tuple[Tensor | None, ...],
        scale: float,
        *keys_and_values: Tensor,
    ) -> Tensor:
        # [r, B, A, w] -> [B, A, r, w]
        queries = query.permute(1, 2, 0, 3)
        kernel = joined_attention.kernel_of(queries)
        whole = _gathered(rows, keys_and_values)
        # In the layout of the queries, so that rows are joined again without a copy.
        result = torch.empty_like(queries)
        log_sum, rest = None, []
        for piece in rows.pieces_for(kernel):
            sets = [one for _, _, one in _sets(piece, queries, whole, ran)]
            joined = attend_to_sets(sets, kernel, head_size=query.shape[-1], scale=scale)
            if log_sum is None:
                log_sum = joined.log_sum.new_empty(result.shape[:-1])
            result[piece.batch, :, piece.queries] = joined.output.to(result.dtype)
            log_sum[piece.batch, :, piece.queries] = joined.log_sum
            rest.append(joined.rest)
        ctx.rows, ctx.ran, ctx.scale, ctx.kernel, ctx.rest = rows, ran, scale, kernel, rest
        ctx.save_for_backward(query, result, log_sum, *keys_and_values)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_query, of_whole = _gradients(ctx, gradient)
        return of_query, None, None, None, *ctx.rows.exchange.add_up(of_whole).unbind(1)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of own queries, [r, B, A, w], and this rank's of all keys and values.

    Apart from backward, so that the gathered keys are released before gradients are sent.
    """
    query, result, log_sum, *keys_and_values = ctx.saved_tensors
    queries = query.permute(1, 2, 0, 3)
    whole = _gathered(ctx.rows, keys_and_values)
    batch_size, num_groups, num_rows, channels = whole[0].shape
    # Queries and keys have gradients from several sets: they are added up in at least float32.
    wide = torch.promote_types(query.dtype, torch.float32)
    of_query = torch.zeros_like(query, dtype=wide)
    of_whole = of_query.new_zeros(num_rows, len(whole), batch_size, num_groups, channels)
    for piece, rest in zip(ctx.rows.pieces_for(ctx.kernel), ctx.rest, strict=True):
        here = (piece.batch, slice(None), piece.queries)
        sets = _sets(piece, queries, whole, ctx.ran)
        for (step, keys, one), rest_of_set in zip(sets, rest, strict=True):
            of_queries, of_keys, of_values = gradients_of_set(
                one,
                ctx.kernel,
                gradient[here],
                result=result[here],
                log_sum=log_sum[here].contiguous(),
                scale=ctx.scale,
                rest=rest_of_set,
            )
            # [B, A, Q, w] -> [Q, B, A, w]
            of_query[piece.queries, piece.batch] += of_queries.permute(2, 0, 1, 3)
            for place, of_one in ((step, of_keys), (step + len(ctx.ran), of_values)):
                # [B, A or G, keys, w] -> [B, G, keys, w] -> [keys, B, G, w]
                summed = sum_over_groups(of_one, num_groups).permute(2, 0, 1, 3)
                of_whole[keys, place, piece.batch] += summed
    return of_query.to(query.dtype), of_whole.to(query.dtype)


def _gathered(rows: SharedRows, own: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return keys or values of the whole row: [r, B, G, w] each -> [B, G, R, w] each, by one collective."""
    whole = rows.exchange.gather(torch.stack(list(own), dim=1))
    # [R, n, B, G, w] -> n of [B, G, R, w]
    return whole.permute(1, 2, 3, 0, 4).unbind(0)


def _sets(
    piece: Piece, queries: Tensor, whole: Sequence[Tensor], ran: Sequence[Tensor | None]
) -> Iterator[tuple[int, slice, AttendedSet]]:
    """Yield the step, the rows and the keys of each set that a piece attends to.

    Args:
        piece: queries and keys.
        queries: [B, A, r, w].
        whole: keys of each step, then values of each step, [B, G, R, w].
        ran: see :func:`attention_over_ranks`.
    """
    own_queries = queries[piece.batch, :, piece.queries]
    for step, (key, value, tokens) in enumerate(zip(whole[: len(ran)], whole[len(ran) :], ran, strict=True)):
        for keys, is_causal in _runs_of_keys(piece):
            here = (piece.batch, slice(None), keys)
            seen = None if tokens is None else tokens[piece.batch, keys]
            one = attended_set(
                own_queries, key[here], value[here], seen, is_causal=is_causal, documents=piece.documents
            )
            yield step, keys, one


def _runs_of_keys(piece: Piece) -> list[tuple[slice, bool]]:
    """Return consecutive keys, each with whether they are seen causally."""
    before, own = piece.before, piece.own
    if piece.documents is not None:
        return [(slice(before.start, own.stop), True)]
    return [(own, True)] if before.start == before.stop else [(before, False), (own, True)]
