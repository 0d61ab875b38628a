"""Causal attention over all documents of a batch by one kernel, on devices that have it.

FlashAttention for sequences of many lengths takes the rows of all sequences one after another and where each
document begins. The loop over documents in :mod:`megatron_ext.ponder.attention` computes the same anywhere.

B = batch, A = query heads, G = key/value heads, R = rows, w = channels.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention

# Of the kernel, which cannot pad heads itself.
_HEAD_STEP = 8
# Layers and passes ask for the same documents; slots multiply their lengths.
_NUM_REMEMBERED = 16


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
    # Exported models bring this file along, to releases of torch that may lack it and never get here.
    from torch.nn.attention.varlen import varlen_attn

    starts, longest = _starts(tuple(map(tuple, segments)), query.shape[2], query.device)
    # [B, A, R, w] -> [B, R, A, w] -> [B * R, A, w]
    queries, keys, values = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    output = varlen_attn(
        queries,
        keys,
        values,
        starts,
        starts,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor), "only a request for more returns more"
    # [B * R, A, w] -> [B, R, A, w] -> [B, A, R, w]
    by_text: Tensor = output.unflatten(0, (query.shape[0], -1)).transpose(1, 2)
    return by_text


@lru_cache(maxsize=_NUM_REMEMBERED)
def _starts(
    segments: tuple[tuple[tuple[int, int], ...], ...], num_rows: int, device: torch.device
) -> tuple[Tensor, int]:
    """Return where documents begin among all rows, and the end, [documents + 1] int32; and the longest."""
    starts = [b * num_rows + start for b, runs in enumerate(segments) for start, _ in runs]
    longest = max(stop - start for runs in segments for start, stop in runs)
    values = torch.tensor([*starts, len(segments) * num_rows], dtype=torch.int32)
    if device.type == "cuda":
        values = values.pin_memory()
    return values.to(device, non_blocking=True), longest
