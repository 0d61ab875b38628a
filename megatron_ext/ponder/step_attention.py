"""Attention of one step to the keys of all steps up to its own, by fused kernels (definitions 3.3).

Row t of step k sees the keys (t', k') with t' <= t and k' <= k. The keys of one step are a causal square, for
which there are fused kernels; :mod:`megatron_ext.ponder.joined_attention` joins their results.

B = batch, A = query heads, G = key/value heads, S = tokens, d = head size, k + 1 = sets of keys.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_ext.ponder import joined_attention
from megatron_ext.ponder.attention import Segments, key_weighted_attention
from megatron_ext.ponder.documents import Documents, has_flash_attention, whole_documents
from megatron_ext.ponder.joined_attention import (
    AttendedSet,
    attend_to_sets,
    attended_set,
    gradients_of_set,
    sum_over_groups,
)
from megatron_ext.ponder.slots import split_slots


def attention_to_steps(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    ran: Sequence[Tensor | None],
    *,
    segments: Segments | None = None,
) -> Tensor:
    """Attend to the keys of steps 0..k.

    Args:
        query: of step k, [B, A, S, d].
        keys, values: of each step, [B, G, S, d], G a divisor of A.
        ran: for each step the tokens that ran it, bool [B, S], or None for all; the others have no keys. At
            least all tokens ran step 0.
        segments: runs of rows that see each other, for packed documents; None where each sequence is one.
    Returns:
        [B, A, S, d]. Rows of tokens that did not run step k are finite and of no use.
    """
    if len(keys) == 1:
        return key_weighted_attention(query, keys[0], values[0], segments=segments)
    if segments is None:
        return _attend(query, keys, values, ran)
    if joined_attention.kernel_of(query).takes_documents:
        return _attend(query, keys, values, ran, whole_documents(segments))
    lengths = [[stop - start for start, stop in runs] for runs in segments]
    # Tensors are split at once: the backward of a slice would fill a whole tensor for each document.
    queries = _by_document(query, lengths, dim=2)
    keys_of, values_of = ([_by_document(x, lengths, dim=2) for x in of_steps] for of_steps in (keys, values))
    ran_of = [None if tokens is None else _by_document(tokens, lengths, dim=1) for tokens in ran]
    sequences = []
    for b, documents in enumerate(queries):
        outputs = [
            _attend(
                document,
                [key[b][d] for key in keys_of],
                [value[b][d] for value in values_of],
                [None if tokens is None else tokens[b][d] for tokens in ran_of],
            )
            for d, document in enumerate(documents)
        ]
        sequences.append(torch.cat(outputs, dim=2))
    return torch.cat(sequences, dim=0)


def can_join(query: Tensor) -> bool:
    """Whether squares are joined without a matrix of rows times rows, unless the caller asks for one."""
    return not query.is_cuda or has_flash_attention(query)


def attention_of_last_slot(
    query: Tensor, key: Tensor, value: Tensor, *, num_slots: int, segments: Segments | None = None
) -> Tensor:
    """Let the last slot of each token attend to a pass: it sees all slots of tokens up to its own.

    The keys of each slot are then a causal square, so that 1/n of the pairs of rows of the pass are computed.

    Args:
        query: [S * n, B, A, d], of which the last slots are used.
        key, value: [S * n, B, G, d].
        num_slots: n.
        segments: runs of rows that see each other, or None.
    Returns:
        [B, A, S, d].
    """
    # [S * n, B, A, d] -> n times [B, A, S, d]
    queries, keys, values = (
        split_slots(rows, num_slots).permute(1, 2, 3, 0, 4).unbind() for rows in (query, key, value)
    )
    tokens = None
    if segments is not None:
        tokens = tuple(
            tuple((start // num_slots, stop // num_slots) for start, stop in runs) for runs in segments
        )
    return attention_to_steps(queries[-1], keys, values, [None] * num_slots, segments=tokens)


def _by_document(values: Tensor, lengths: Sequence[list[int]], *, dim: int) -> list[Sequence[Tensor]]:
    """Split [B, ...] into the documents of each sequence, whose rows are in `dim`."""
    return [
        sequence.split(of_sequence, dim=dim)
        for sequence, of_sequence in zip(values.split(1), lengths, strict=True)
    ]


def _attend(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    ran: Sequence[Tensor | None],
    documents: Documents | None = None,
) -> Tensor:
    if not joined_attention.has_fused_kernel(query):
        return _attend_by_products(query, keys, values, ran)
    output: Tensor = _JoinedAttention.apply(  # type: ignore[no-untyped-call]
        query, tuple(ran), documents, *keys, *values
    )
    return output


def _squares(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    ran: Sequence[Tensor | None],
    documents: Documents | None = None,
) -> list[AttendedSet]:
    """Return the keys of each step as a causal square, or one of each document."""
    steps = zip(keys, values, ran, strict=True)
    return [attended_set(query, *of_step, is_causal=True, documents=documents) for of_step in steps]


def _attend_by_products(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], ran: Sequence[Tensor | None]
) -> Tensor:
    """Compute the same with scores as matrices, where no kernel can be joined."""
    head_size, num_rows = query.shape[-1], query.shape[2]
    is_later = torch.ones(num_rows, num_rows, dtype=torch.bool, device=query.device).triu(1)
    scores, squares = [], _squares(query, keys, values, ran)
    for one in squares:
        products = one.query @ one.key.transpose(-1, -2) / math.sqrt(head_size)
        scores.append(products.masked_fill(is_later, -math.inf))
    wide_dtype = torch.promote_types(query.dtype, torch.float32)
    shares = torch.softmax(torch.cat(scores, dim=-1), dim=-1, dtype=wide_dtype).to(query.dtype)
    parts = [
        (share @ one.value)[..., :head_size]
        for share, one in zip(shares.split(num_rows, dim=-1), squares, strict=True)
    ]
    return torch.stack(parts).sum(dim=0)


class _JoinedAttention(torch.autograd.Function):
    """Causal attention to several sets of keys by one kernel call for each."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        ran: tuple[Tensor | None, ...],
        documents: Documents | None,
        *keys_and_values: Tensor,
    ) -> Tensor:
        keys, values = keys_and_values[: len(ran)], keys_and_values[len(ran) :]
        head_size, ctx.kernel = query.shape[-1], joined_attention.kernel_of(query)
        joined = attend_to_sets(
            _squares(query, keys, values, ran, documents),
            ctx.kernel,
            head_size=head_size,
            scale=1.0 / math.sqrt(head_size),
        )
        result = joined.output.to(query.dtype)
        ctx.ran, ctx.documents, ctx.rest = ran, documents, joined.rest
        ctx.save_for_backward(query, result, joined.log_sum, *keys_and_values)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, result, log_sum, *keys_and_values = ctx.saved_tensors
        num_steps, scale = len(ctx.ran), 1.0 / math.sqrt(query.shape[-1])
        of_query: Tensor | None = None
        of_keys, of_values = [], []
        keys, values = keys_and_values[:num_steps], keys_and_values[num_steps:]
        for key, value, ran, rest in zip(keys, values, ctx.ran, ctx.rest, strict=True):
            one = attended_set(query, key, value, ran, is_causal=True, documents=ctx.documents)
            own, of_key, of_value = gradients_of_set(
                one, ctx.kernel, gradient, result=result, log_sum=log_sum, scale=scale, rest=rest
            )
            of_query = own if of_query is None else of_query + own
            of_keys.append(sum_over_groups(of_key, key.shape[1]))
            of_values.append(sum_over_groups(of_value, key.shape[1]))
        return of_query, None, None, *of_keys, *of_values
