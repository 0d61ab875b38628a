"""Attention of one run of queries to several sets of keys, by one call of a fused kernel for each set.

Kernels also return the logarithm of each softmax's sum, by which the results of several sets are joined. The
backward kernels take the joined result and the joined sum, and then give the gradients of their set within
the whole. No matrix of rows times rows is built where the device has a kernel.

B = batch, A = query heads, G = key/value heads, Q = query rows, R = key rows of a set, d = channels that are
read, w = channels with those of weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_ext.ponder.attention import extended_keys, extended_size, extended_values, widened_query
from megatron_ext.ponder.documents import (
    Documents,
    backward_over_documents,
    forward_over_documents,
    has_flash_attention,
)
from megatron_ext.ponder.halting import PRUNED_LOG_MASS

# What torch calls flash attention in its choice among kernels.
_FLASH = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AttendedSet:
    """Keys that queries see all of, or of which query row i sees rows 0..i, or those of its document.

    Attributes:
        query: [B, A, Q, w].
        key, value: [B, A, R, w]; [B, G, R, w] with documents.
        is_causal: whether the rows are the queries' own, in order; Q is R unless there are documents.
        documents: see :mod:`megatron_ext.ponder.documents`; for kernels that take them, else None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    is_causal: bool
    documents: Documents | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The result over all sets.

    Attributes:
        output: [B, A, Q, d], in the precision of the kernel's sums.
        log_sum: [B, A, Q], logarithm of the sum of each softmax.
        rest: what the kernel's backward needs beside them, for each set.
    """

    output: Tensor
    log_sum: Tensor
    rest: list[Any]


class Kernel(Protocol):
    """A fused attention with a result that can be joined.

    Attributes:
        takes_documents: whether a set may have documents.
    """

    takes_documents: bool

    def forward(self, one: AttendedSet, scale: float) -> tuple[Tensor, Tensor, Any]:
        """Return the result, [B, A, Q, w], the logarithm of each row's sum, [B, A, Q], and the rest."""
        ...

    def backward(
        self, gradient: Tensor, one: AttendedSet, output: Tensor, log_sum: Tensor, scale: float, rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients of query, key and value, given the joined result and logarithm."""
        ...


def has_fused_kernel(query: Tensor) -> bool:
    """Whether there is a kernel that can be joined, for this device, dtype and the caller's wish."""
    if query.is_cuda:
        return has_flash_attention(query)
    query = query.detach()
    return int(torch._fused_sdp_choice(query, query, query, None, 0.0, True)) == _FLASH


def kernel_of(query: Tensor) -> Kernel:
    """Return the kernel for these queries; plain products where no fused one can be joined."""
    if not has_fused_kernel(query):
        return ProductKernel()
    return CudaKernel() if query.is_cuda else CpuKernel()


def attended_set(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    ran: Tensor | None,
    *,
    is_causal: bool,
    documents: Documents | None = None,
) -> AttendedSet:
    """Bring one set of keys to the heads of the queries, with a column that hides the keys of absent tokens.

    Args:
        query: [B, A, Q, d].
        key, value: [B, G, R, d].
        ran: [B, R], the tokens that have keys, or None for all.
        is_causal, documents: see :class:`AttendedSet`.
    Returns:
        A set whose w is d where all tokens have keys.
    """
    group_size = query.shape[1] // key.shape[1]
    if ran is not None:
        size = extended_size(query.shape[-1], key.dtype, key.dtype)
        hidden = torch.where(ran, 0.0, PRUNED_LOG_MASS).to(key.dtype)
        query = widened_query(query, size)
        key, value = extended_keys(key, hidden.unsqueeze(1), size), extended_values(value, size)
    if group_size > 1 and documents is None:
        key, value = (x.repeat_interleave(group_size, dim=1) for x in (key, value))
    return AttendedSet(query=query, key=key, value=value, is_causal=is_causal, documents=documents)


def attend_to_sets(sets: Sequence[AttendedSet], kernel: Kernel, *, head_size: int, scale: float) -> Joined:
    """Attend to several sets of keys within one softmax.

    Args:
        sets: with the same queries, but for channels of weights; at least one.
        kernel: from :func:`kernel_of`.
        head_size: d.
        scale: of the products of queries and keys.
    """
    joined = log_sum = None
    rests = []
    for one in sets:
        output, own_sum, rest = kernel.forward(one, scale)
        rests.append(rest)
        output = output[..., :head_size].to(own_sum.dtype)
        if joined is None or log_sum is None:
            joined, log_sum = output, own_sum
            continue
        total = torch.logaddexp(log_sum, own_sum)
        share, other_share = (part.sub(total).exp().unsqueeze(-1) for part in (log_sum, own_sum))
        joined = joined * share + output * other_share
        log_sum = total
    assert joined is not None, "there is at least one set"
    assert log_sum is not None, "it comes with the result"
    return Joined(output=joined, log_sum=log_sum, rest=rests)


def gradients_of_set(
    one: AttendedSet,
    kernel: Kernel,
    gradient: Tensor,
    *,
    result: Tensor,
    log_sum: Tensor,
    scale: float,
    rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the query, key and value of one set.

    Args:
        one: from :func:`attended_set`.
        kernel: of the forward.
        gradient: of the result, [B, A, Q, d].
        result, log_sum, rest: of :func:`attend_to_sets`; the result in the dtype of the queries.
        scale: as there.
    Returns:
        [B, A, Q, d] and twice [B, A, R, d], or [B, G, R, d] with documents.
    """
    head_size, wide = gradient.shape[-1], one.query.shape[-1]
    gradients = kernel.backward(
        extended_values(gradient, wide), one, extended_values(result, wide), log_sum, scale, rest
    )
    of_query, of_key, of_value = (part[..., :head_size] for part in gradients)
    return of_query, of_key, of_value


def sum_over_groups(gradient: Tensor, num_groups: int) -> Tensor:
    """Add up the gradients of the heads that share keys: [B, A or G, R, d] -> [B, G, R, d]."""
    if gradient.shape[1] == num_groups:
        return gradient
    total: Tensor = gradient.unflatten(1, (num_groups, -1)).sum(dim=2)
    return total


class CpuKernel:
    """torch's flash attention for CPUs."""

    takes_documents = False

    def forward(self, one: AttendedSet, scale: float) -> tuple[Tensor, Tensor, Any]:
        output, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            one.query, one.key, one.value, 0.0, one.is_causal, scale=scale
        )
        return output, log_sum, None

    def backward(
        self, gradient: Tensor, one: AttendedSet, output: Tensor, log_sum: Tensor, scale: float, rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        del rest
        gradients: tuple[Tensor, Tensor, Tensor] = (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                gradient, one.query, one.key, one.value, output, log_sum, 0.0, one.is_causal, scale=scale
            )
        )
        return gradients


class CudaKernel:
    """Flash attention on GPUs, for 16-bit dtypes."""

    takes_documents = True

    def forward(self, one: AttendedSet, scale: float) -> tuple[Tensor, Tensor, Any]:
        if one.documents is not None:
            return *forward_over_documents(one.query, one.key, one.value, one.documents, scale=scale), None
        output, log_sum, *rest, _ = torch.ops.aten._scaled_dot_product_flash_attention(
            one.query, one.key, one.value, 0.0, one.is_causal, False, scale=scale
        )
        return output, log_sum, rest

    def backward(
        self, gradient: Tensor, one: AttendedSet, output: Tensor, log_sum: Tensor, scale: float, rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        if one.documents is not None:
            return backward_over_documents(
                gradient,
                one.query,
                one.key,
                one.value,
                one.documents,
                output=output,
                log_sum=log_sum,
                scale=scale,
            )
        from_query, from_key, longest_query, longest_key, seed, offset = rest
        gradients: tuple[Tensor, Tensor, Tensor] = (
            torch.ops.aten._scaled_dot_product_flash_attention_backward(
                gradient,
                one.query,
                one.key,
                one.value,
                output,
                log_sum,
                from_query,
                from_key,
                longest_query,
                longest_key,
                0.0,
                one.is_causal,
                seed,
                offset,
                scale=scale,
            )
        )
        return gradients


class ProductKernel:
    """The same by matrices of scores, for dtypes and devices without a fused kernel."""

    takes_documents = False

    def forward(self, one: AttendedSet, scale: float) -> tuple[Tensor, Tensor, Any]:
        scores = _scores(one, scale)
        log_sum = torch.logsumexp(scores, dim=-1)
        shares = torch.exp(scores - log_sum.unsqueeze(-1))
        return (shares @ one.value.to(shares.dtype)).to(one.query.dtype), log_sum, None

    def backward(
        self, gradient: Tensor, one: AttendedSet, output: Tensor, log_sum: Tensor, scale: float, rest: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        del rest
        shares = torch.exp(_scores(one, scale) - log_sum.unsqueeze(-1))
        wide = gradient.to(shares.dtype)
        query, key, value = (x.to(shares.dtype) for x in (one.query, one.key, one.value))
        # Jacobian of the softmax; its second term sums over all sets, so it is taken from the joined output.
        of_scores = shares * (wide @ value.transpose(-1, -2) - (wide * output).sum(dim=-1, keepdim=True))
        gradients = of_scores @ key * scale, of_scores.transpose(-1, -2) @ query * scale
        of_query, of_key, of_value = (
            x.to(gradient.dtype) for x in (*gradients, shares.transpose(-1, -2) @ wide)
        )
        return of_query, of_key, of_value


def _scores(one: AttendedSet, scale: float) -> Tensor:
    wide = torch.promote_types(one.query.dtype, torch.float32)
    scores = one.query.to(wide) @ one.key.to(wide).transpose(-1, -2) * scale
    if not one.is_causal:
        return scores
    is_later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(is_later, -math.inf)
