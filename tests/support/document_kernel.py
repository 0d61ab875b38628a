"""FlashAttention for documents on the CPU: plain products in the place of the CUDA kernel."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from megatron_ext.ponder import attention, joined_attention


@contextmanager
def kernel_for_documents() -> Iterator[list[int]]:
    """Let attention take the path that it takes on CUDA; yield the number of documents of each forward."""
    calls: list[int] = []

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        calls.append(args[3].numel() - 1)
        return _forward(*args, **kwargs)

    before = attention.has_kernel_for_documents, joined_attention.kernel_of
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("_flash_attention_forward", forward, "CPU")
        library.impl("_flash_attention_backward", _backward, "CPU")
        attention.has_kernel_for_documents = lambda query: True
        joined_attention.kernel_of = lambda query: joined_attention.CudaKernel()
        try:
            yield calls
        finally:
            attention.has_kernel_for_documents, joined_attention.kernel_of = before


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    from_query: Tensor,
    from_key: Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float,
    is_causal: bool,
    returns_mask: bool,
    *,
    scale: float,
    **_: Any,
) -> tuple[Tensor, ...]:
    """Queries, [T, A, w], see keys, [U, G, w], of their document up to their own: the last sees all."""
    assert (dropout, is_causal, returns_mask) == (0.0, True, False)
    output = torch.full_like(query, math.nan)
    log_sum = torch.full(query.shape[1::-1], math.nan, dtype=_wide(query))
    for queries, keys in _documents(query, key, from_query, from_key, longest_query, longest_key):
        scores = _scores(query[queries], key[keys], scale)
        log_sum[:, queries] = scores.logsumexp(dim=-1)
        values = _by_head(value[keys], query.shape[1])
        output[queries] = (scores.softmax(dim=-1) @ values).transpose(0, 1).to(query.dtype)
    nothing = torch.empty(0)
    return output, log_sum, nothing, nothing, nothing


def _backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sum: Tensor,
    from_query: Tensor,
    from_key: Tensor,
    longest_query: int,
    longest_key: int,
    dropout: float,
    is_causal: bool,
    *_: Any,
    scale: float,
    **__: Any,
) -> tuple[Tensor, ...]:
    assert (dropout, is_causal) == (0.0, True)
    assert log_sum.is_contiguous()
    heads = query.shape[1]
    gradients = [torch.full_like(x, math.nan) for x in (query, key, value)]
    for queries, keys in _documents(query, key, from_query, from_key, longest_query, longest_key):
        shares = torch.exp(_scores(query[queries], key[keys], scale) - log_sum[:, queries].unsqueeze(-1))
        wide, result = (_by_head(x[queries], heads) for x in (gradient, output))
        of_shares = wide @ _by_head(value[keys], heads).transpose(-1, -2)
        of_scores = shares * (of_shares - (wide * result).sum(dim=-1, keepdim=True)) * scale
        found = (
            of_scores @ _by_head(key[keys], heads),
            of_scores.transpose(-1, -2) @ _by_head(query[queries], heads),
            shares.transpose(-1, -2) @ wide,
        )
        for target, rows, one in zip(gradients, (queries, keys, keys), found, strict=True):
            # [A, rows, w] -> [G, A / G, rows, w] -> [G, rows, w] -> [rows, G, w]
            by_group = one.unflatten(0, (target.shape[1], -1)).sum(dim=1)
            target[rows] = by_group.transpose(0, 1).to(target.dtype)
    return tuple(gradients)


def _documents(
    query: Tensor, key: Tensor, from_query: Tensor, from_key: Tensor, longest_query: int, longest_key: int
) -> list[tuple[slice, slice]]:
    """Return the rows of queries and of keys of each document."""
    borders = []
    for rows, starts, longest in ((query, from_query, longest_query), (key, from_key, longest_key)):
        assert (starts.dtype, int(starts[0]), int(starts[-1])) == (torch.int32, 0, len(rows))
        assert longest == int(starts.diff().max())
        found = starts.tolist()
        borders.append([slice(*pair) for pair in pairwise(found)])
    return list(zip(*borders, strict=True))


def _scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
    heads, num_queries, num_keys = query.shape[1], len(query), len(key)
    scores = _by_head(query, heads) @ _by_head(key, heads).transpose(-1, -2) * scale
    is_later = torch.ones(num_queries, num_keys, dtype=torch.bool).triu(num_keys - num_queries + 1)
    return scores.masked_fill(is_later, -math.inf)


def _by_head(rows: Tensor, heads: int) -> Tensor:
    """[rows, G, w] -> [A, rows, w], in at least float32."""
    return rows.to(_wide(rows)).repeat_interleave(heads // rows.shape[1], dim=1).transpose(0, 1)


def _wide(rows: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, torch.float32)
