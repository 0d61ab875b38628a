"""Causal attention over all documents of a batch by one kernel, on devices that have it.

FlashAttention for sequences of many lengths takes the rows of all sequences one after another and where each
document begins. The loops over documents in :mod:`megatron_ext.ponder.attention`,
:mod:`megatron_ext.ponder.step_attention` and :mod:`megatron_ext.parallel.context_attention` compute the same
anywhere.

B = batch, A = query heads, G = key/value heads, Q = query rows, R = key rows, w = channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention

# Of the kernel, which cannot pad heads itself.
_HEAD_STEP = 8
# Layers ask for the same documents, of every sequence and chunk; slots multiply their lengths.
_NUM_REMEMBERED = 64
# As far back as the document goes, and none ahead. Where there are more keys than queries, FlashAttention
# aligns the last key with the last query.
_CAUSAL = (-1, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """Lengths of documents, one after another over all sequences.

    Attributes:
        queries: rows of queries.
        keys: rows of keys, of which the last ones are the queries' own: all queries see those before, and
            query i of n sees all but the last n - 1 - i.
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]


def whole_documents(segments: Sequence[Sequence[tuple[int, int]]]) -> Documents:
    """Return the documents of sequences, given as runs [start, stop) of rows that cover each sequence."""
    lengths = tuple(stop - start for runs in segments for start, stop in runs)
    return Documents(queries=lengths, keys=lengths)


def has_kernel_for_documents(query: Tensor) -> bool:
    """Return whether the device of the queries has a kernel for their dtype and head size."""
    return query.is_cuda and has_flash_attention(query)


def has_flash_attention(query: Tensor) -> bool:
    """Return whether causal FlashAttention runs on these queries on CUDA, unless it has been switched off.

    Not whether torch would choose it: it may prefer cuDNN's attention, which can do less.
    """
    query = query.detach()
    params = SDPAParams(query, query, query, None, 0.0, True, False)
    return query.shape[-1] % _HEAD_STEP == 0 and can_use_flash_attention(params)


def attend_to_documents(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[Sequence[tuple[int, int]]],
    *,
    scale: float,
) -> Tensor:
    """Let every row see the rows of its document up to its own.

    Args:
        query: [B, A, R, w].
        key, value: [B, G, R, w], G a divisor of A.
        segments: documents of each sequence as runs [start, stop) of rows, which cover it.
        scale: of the products of queries and keys.
    Returns:
        [B, A, R, w].
    """
    output = _varlen_attention(query, key, value, whole_documents(segments), scale=scale)
    assert isinstance(output, Tensor), "only a request for more returns more"
    return _by_sequence(output, len(query))


def forward_over_documents(
    query: Tensor, key: Tensor, value: Tensor, documents: Documents, *, scale: float
) -> tuple[Tensor, Tensor]:
    """Let every query see the keys of its document up to its own, without a graph.

    Args:
        query: [B, A, Q, w].
        key, value: [B, G, R, w], G a divisor of A.
        documents: cover the B * Q queries and the B * R keys.
        scale: of the products of queries and keys.
    Returns:
        The result, [B, A, Q, w], and the logarithm of each row's sum, [B, A, Q].
    """
    output, log_sum = _varlen_attention(query, key, value, documents, scale=scale, returns_log_sum=True)
    # [A, B * Q] -> [A, B, Q] -> [B, A, Q]
    return _by_sequence(output, len(query)), log_sum.unflatten(1, (len(query), -1)).transpose(0, 1)


def backward_over_documents(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    *,
    output: Tensor,
    log_sum: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value of :func:`forward_over_documents`.

    Args:
        gradient: of the result, [B, A, Q, w].
        query, key, value, documents, scale: as there.
        output, log_sum: as returned there, or joined with those of other keys.
    """
    import torch.nn.attention.varlen  # registers the operation

    # Of dropout, which there is none of.
    random_state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    gradients = torch.ops.torch_attn._varlen_attn_backward(
        *(_one_after_another(x) for x in (gradient, query, key, value, output)),
        # [B, A, Q] -> [A, B, Q] -> [A, B * Q]
        log_sum.transpose(0, 1).flatten(1).contiguous(),
        *_borders(documents, query.device),
        True,
        random_state,
        scale,
        list(_CAUSAL),
    )
    of_query, of_key, of_value = (_by_sequence(x, len(query)) for x in gradients)
    return of_query, of_key, of_value


def _varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    *,
    scale: float,
    returns_log_sum: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the result, [B * Q, A, w], and if asked for the logarithm of each row's sum, [A, B * Q]."""
    # Exported models bring this file along, to releases of torch that may lack it and never get here.
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    from_query, from_key, longest_query, longest_key = _borders(documents, query.device)
    return varlen_attn(
        _one_after_another(query),
        _one_after_another(key),
        _one_after_another(value),
        from_query,
        from_key,
        longest_query,
        longest_key,
        return_aux=AuxRequest(lse=True) if returns_log_sum else None,
        scale=scale,
        window_size=_CAUSAL,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _one_after_another(rows: Tensor) -> Tensor:
    """[B, A, R, w] -> [B, R, A, w] -> [B * R, A, w]."""
    return rows.transpose(1, 2).flatten(0, 1)


def _by_sequence(rows: Tensor, batch_size: int) -> Tensor:
    """[B * R, A, w] -> [B, R, A, w] -> [B, A, R, w]."""
    by_sequence: Tensor = rows.unflatten(0, (batch_size, -1)).transpose(1, 2)
    return by_sequence


@lru_cache(maxsize=_NUM_REMEMBERED)
def _borders(documents: Documents, device: torch.device) -> tuple[Tensor, Tensor, int, int]:
    """Return where documents begin among queries and keys, each with the end, and the longest of both.

    Returns:
        Twice [documents + 1] int32, and two numbers of rows.
    """
    lengths = (documents.queries, documents.keys)
    values = torch.tensor([list(accumulate(own, initial=0)) for own in lengths], dtype=torch.int32)
    if device.type == "cuda":
        values = values.pin_memory()
    of_queries, of_keys = values.to(device, non_blocking=True).unbind()
    return of_queries, of_keys, max(documents.queries), max(documents.keys)
