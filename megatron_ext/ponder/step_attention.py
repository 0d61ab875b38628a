"""Attention of one step to the keys of all steps up to its own, by fused kernels (definitions 3.3).

Row t of step k sees the keys (t', k') with t' <= t and k' <= k. The keys of one step are a causal square, for
which there are fused kernels; they also return the logarithm of each softmax's sum, by which the results of
several squares are joined. The backward kernels take the joined result and the joined sum, and then give the
gradients of their square within the whole. No matrix of rows times rows is ever built.

B = batch, A = query heads, G = key/value heads, S = tokens, d = head size, k + 1 = sets of keys.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_ext.ponder.attention import (
    Segments,
    extended_keys,
    extended_size,
    extended_values,
    key_weighted_attention,
    widened_query,
)
from megatron_ext.ponder.documents import has_flash_attention
from megatron_ext.ponder.halting import PRUNED_LOG_MASS
from megatron_ext.ponder.slots import split_slots

# What torch calls plain products in its choice among kernels.
_PLAIN, _FLASH = 0, 1


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
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], ran: Sequence[Tensor | None]
) -> Tensor:
    joined = _joins(query)
    if not joined:
        return _attend_by_products(query, keys, values, ran)
    output: Tensor = _JoinedAttention.apply(query, tuple(ran), *keys, *values)  # type: ignore[no-untyped-call]
    return output


def _joins(query: Tensor) -> bool:
    """Whether there is a kernel that can be joined, for this device, dtype and the caller's wish."""
    if query.is_cuda:
        return has_flash_attention(query)
    query = query.detach()
    return int(torch._fused_sdp_choice(query, query, query, None, 0.0, True)) == _FLASH


def _square(query: Tensor, key: Tensor, value: Tensor, ran: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Bring one set of keys to the heads of the queries, with a column that hides the keys of absent tokens.

    Args:
        query: [B, A, S, d].
        key, value: [B, G, S, d].
        ran: [B, S] or None.
    Returns:
        All three, [B, A, S, w]; w is d where all tokens have keys.
    """
    group_size = query.shape[1] // key.shape[1]
    if ran is not None:
        size = extended_size(query.shape[-1], key.dtype, key.dtype)
        hidden = torch.where(ran, 0.0, PRUNED_LOG_MASS).to(key.dtype)
        query = widened_query(query, size)
        key, value = extended_keys(key, hidden.unsqueeze(1), size), extended_values(value, size)
    if group_size > 1:
        key, value = (x.repeat_interleave(group_size, dim=1) for x in (key, value))
    return query, key, value


def _attend_by_products(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], ran: Sequence[Tensor | None]
) -> Tensor:
    """Compute the same with scores as matrices, where no kernel can be joined."""
    head_size, num_rows = query.shape[-1], query.shape[2]
    is_later = torch.ones(num_rows, num_rows, dtype=torch.bool, device=query.device).triu(1)
    scores, squares = [], [_square(query, *of_step) for of_step in zip(keys, values, ran, strict=True)]
    for wide, key, _ in squares:
        scores.append((wide @ key.transpose(-1, -2) / math.sqrt(head_size)).masked_fill(is_later, -math.inf))
    wide_dtype = torch.promote_types(query.dtype, torch.float32)
    shares = torch.softmax(torch.cat(scores, dim=-1), dim=-1, dtype=wide_dtype).to(query.dtype)
    parts = [
        (share @ value)[..., :head_size]
        for share, (_, _, value) in zip(shares.split(num_rows, dim=-1), squares, strict=True)
    ]
    return torch.stack(parts).sum(dim=0)


class _Kernel(Protocol):
    """A fused causal attention with a result that can be joined."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Any]:
        """Return the result, [B, A, S, w], the logarithm of each row's sum, [B, A, S], and the rest."""
        ...

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        log_sum: Tensor,
        scale: float,
        rest: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value, given the joined result and logarithm."""
        ...


class _CpuKernel:
    """torch's flash attention for CPUs."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Any]:
        output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, True, scale=scale
        )
        return output, log_sum, None

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        log_sum: Tensor,
        scale: float,
        rest: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        del rest
        gradients: tuple[Tensor, Tensor, Tensor] = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient, query, key, value, output, log_sum, 0.0, True, scale=scale
            )
        )
        return gradients


class _CudaKernel:
    """Flash attention on GPUs, for 16-bit dtypes."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Any]:
        output, log_sum, *rest, _ = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, True, False, scale=scale
        )
        return output, log_sum, rest

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        log_sum: Tensor,
        scale: float,
        rest: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from_query, from_key, longest_query, longest_key, seed, offset = rest
        gradients: tuple[Tensor, Tensor, Tensor] = (
            torch.ops.aten._scaled_dot_product_flash_attention_backward(
                gradient,
                query,
                key,
                value,
                output,
                log_sum,
                from_query,
                from_key,
                longest_query,
                longest_key,
                0.0,
                True,
                seed,
                offset,
                scale=scale,
            )
        )
        return gradients


def _kernel(query: Tensor) -> _Kernel:
    return _CudaKernel() if query.is_cuda else _CpuKernel()


class _JoinedAttention(torch.autograd.Function):
    """Causal attention to several sets of keys by one kernel call for each."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, ran: tuple[Tensor | None, ...], *keys_and_values: Tensor) -> Tensor:
        keys, values = keys_and_values[: len(ran)], keys_and_values[len(ran) :]
        head_size, kernel = query.shape[-1], _kernel(query)
        scale = 1.0 / math.sqrt(head_size)
        joined = log_sum = None
        ctx.rest = []
        for of_step in zip(keys, values, ran, strict=True):
            output, one, rest = kernel.forward(*_square(query, *of_step), scale)
            ctx.rest.append(rest)
            output = output[..., :head_size].to(one.dtype)
            if joined is None or log_sum is None:
                joined, log_sum = output, one
                continue
            total = torch.logaddexp(log_sum, one)
            share, other_share = (part.sub(total).exp().unsqueeze(-1) for part in (log_sum, one))
            joined = joined * share + output * other_share
            log_sum = total
        assert joined is not None, "step 0 has keys"
        result = joined.to(query.dtype)
        ctx.ran = ran
        ctx.save_for_backward(query, result, log_sum, *keys_and_values)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, result, log_sum, *keys_and_values = ctx.saved_tensors
        num_steps, head_size, kernel = len(ctx.ran), query.shape[-1], _kernel(query)
        scale = 1.0 / math.sqrt(head_size)
        of_query: Tensor | None = None
        of_keys, of_values = [], []
        steps = zip(keys_and_values[:num_steps], keys_and_values[num_steps:], ctx.ran, ctx.rest, strict=True)
        for key, value, ran, rest in steps:
            square = _square(query, key, value, ran)
            wide = square[0].shape[-1]
            one, of_key, of_value = kernel.backward(
                extended_values(gradient, wide), *square, extended_values(result, wide), log_sum, scale, rest
            )
            one = one[..., :head_size]
            of_query = one if of_query is None else of_query + one
            of_keys.append(_of_groups(of_key[..., :head_size], key.shape[1]))
            of_values.append(_of_groups(of_value[..., :head_size], key.shape[1]))
        return of_query, None, *of_keys, *of_values


def _of_groups(gradient: Tensor, num_groups: int) -> Tensor:
    """Add up the gradients of the heads that share keys: [B, A, S, d] -> [B, G, S, d]."""
    if gradient.shape[1] == num_groups:
        return gradient
    total: Tensor = gradient.unflatten(1, (num_groups, -1)).sum(dim=2)
    return total
