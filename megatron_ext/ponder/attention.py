"""Attention with one additive weight per key column, at the cost of plain attention (definitions 2.6).

``softmax(Q K^T / sqrt(d) + 1 log w^T)`` is plain attention with the key extended by the column
``sqrt(d) * log w`` and the query by a column of ones, at the unchanged scale ``1 / sqrt(d)``. Every fused
kernel applies and gives the gradient of ``log w`` as one more column of the key's gradient. The scale may be
``1 / sqrt(d + e)`` instead, for all logits, which leaves the weights as they are (definitions 2.8).

B = batch, A = query heads, G = key/value heads, Q = query rows, R = key rows, d = head size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.ponder.documents import attend_to_documents, has_kernel_for_documents

# Fused kernels on GPUs need head sizes in multiples of eight.
HEAD_SIZE_STEP = 8

# Half-open runs [start, stop) of rows that see each other, for each sequence of the batch.
Segments = tuple[tuple[tuple[int, int], ...], ...]


def key_weighted_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_weight: Tensor | None = None,
    *,
    causal: bool = True,
    segments: Segments | None = None,
    scale_extra: int = 0,
) -> Tensor:
    """Attend with key column r weighted by ``exp(log_weight[r])`` in every softmax.

    Args:
        query: [B, A, Q, d].
        key, value: [B, G, R, d], G a divisor of A.
        log_weight: [B, R] added to the logits of each key column after the scaling, or None.
        causal: query row i sees key rows 0..i; otherwise it sees all.
        segments: runs of rows that see each other, for causal attention over packed documents.
        scale_extra: e; products of queries and keys are divided by sqrt(d + e).
    Returns:
        [B, A, Q, d].
    """
    head_size = query.shape[-1]
    if log_weight is not None:
        query, key, value = _augment(query, key, value, log_weight, scale_extra)
    output = extended_attention(
        query, key, value, scaled_size=head_size + scale_extra, causal=causal, segments=segments
    )
    return output[..., :head_size]


def extended_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scaled_size: int,
    causal: bool = True,
    segments: Segments | None = None,
) -> Tensor:
    """Attend with keys that already carry their weights.

    Args:
        query: [B, A, Q, w], see :func:`widened_query`.
        key, value: [B, G, R, w], see :func:`extended_keys` and :func:`extended_values`.
        scaled_size: d + e, see :func:`key_weighted_attention`.
        causal, segments: see :func:`key_weighted_attention`.
    Returns:
        [B, A, Q, w], of which the first d channels are the result.
    """
    scale = 1.0 / math.sqrt(scaled_size)
    if segments is None:
        return _attend(query, key, value, causal=causal, scale=scale)
    return _attend_by_segment(query, key, value, segments=segments, scale=scale)


def is_one_call(query: Tensor, segments: Segments | None) -> bool:
    """Return whether :func:`extended_attention` is one call of a kernel, which keeps its result."""
    return segments is None or has_kernel_for_documents(query)


def stored_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    head_size: int | None = None,
    causal: bool = False,
    visible: Tensor | None = None,
    scale_extra: int = 0,
) -> Tensor:
    """Attend to stored keys, which already carry their weights.

    Args:
        query: [B, A, Q, d], or [B, A, Q, w] from :func:`widened_query`.
        keys: [B, G, R, w] from :func:`extended_keys`, G a divisor of A, w at least d.
        values: [B, G, R, w] from :func:`extended_values`.
        head_size: d, of a query that is as wide as the keys.
        causal: Q is R and query row i sees key rows 0..i.
        visible: bool, [Q, R] or [B, 1, Q, R], or [B, R] where Q is 1; None where every query row sees all
            keys, or where `causal` decides. Instead of a bool, what is added to the logits.
        scale_extra: see :func:`key_weighted_attention`; the same that the keys' weights were stored with.
    Returns:
        [B, A, Q, d].
    """
    head_size, width = head_size or query.shape[-1], keys.shape[-1]
    scale = 1.0 / math.sqrt(head_size + scale_extra)
    # Where a key has no weight it is padded by zeros, so that every further channel of the query may be one.
    wide = widened_query(query, width) if width > query.shape[-1] else query
    if query.shape[2] == 1:
        # The heads that share keys take the place of rows: [B, A, 1, w] -> [B, G, A / G, w]
        grouped = wide.squeeze(2).unflatten(1, (keys.shape[1], -1))
        # [B, R] -> [B, 1, 1, R]
        mask = None if visible is None else visible[:, None, None]
        output = functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        # [B, G, A / G, w] -> [B, A, 1, w]
        output = output.flatten(1, 2).unsqueeze(2)
    else:
        output = _attend(wide, keys, values, causal=causal, visible=visible, scale=scale)
    return output[..., :head_size]


def attention_to_parts(
    query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], visible: Sequence[Tensor | None]
) -> Tensor:
    """Attend to several sets of stored keys at once.

    Args:
        query: [B, A, Q, d].
        keys, values: of each set, [B, G, R, d] with an R of its own, G a divisor of A.
        visible: for each set a bool, [B, Q, R]; None where every query row sees all of it.
    Returns:
        [B, A, Q, d].
    """
    if query.shape[2] > 1:
        everything = [
            torch.ones(len(key), query.shape[2], key.shape[2], dtype=torch.bool, device=key.device)
            if seen is None
            else seen
            for key, seen in zip(keys, visible, strict=True)
        ]
        joined = torch.cat(everything, dim=-1).unsqueeze(1)
        return stored_attention(query, torch.cat(list(keys), 2), torch.cat(list(values), 2), visible=joined)
    # One row each: its scores are few, and the keys, which are many, are not copied.
    # [B, A, 1, d] -> [B, G, A / G, d]
    grouped = query.squeeze(2).unflatten(1, (keys[0].shape[1], -1)) / math.sqrt(query.shape[-1])
    scores = [grouped @ key.transpose(-1, -2) for key in keys]
    for number, mask in enumerate(visible):
        if mask is not None:
            # [B, 1, R] -> [B, 1, 1, R]
            scores[number] = scores[number].masked_fill(~mask.unsqueeze(1), -math.inf)
    wide = torch.promote_types(query.dtype, torch.float32)
    shares = torch.softmax(torch.cat(scores, dim=-1), dim=-1, dtype=wide).to(query.dtype)
    parts = shares.split([key.shape[2] for key in keys], dim=-1)
    output = torch.stack([part @ value for part, value in zip(parts, values, strict=True)]).sum(dim=0)
    # [B, G, A / G, d] -> [B, A, 1, d]
    return output.flatten(1, 2).unsqueeze(2)


def extended_size(head_size: int, weight_dtype: torch.dtype | None, dtype: torch.dtype) -> int:
    """Return the channels of a stored key: of the head, and for a weight of `weight_dtype` unless None."""
    if weight_dtype is None:
        return head_size
    num_columns = 1 if dtype.itemsize >= weight_dtype.itemsize else 2
    return head_size + num_columns + -(head_size + num_columns) % HEAD_SIZE_STEP


def extended_keys(key: Tensor, log_weight: Tensor, size: int, *, scale_extra: int = 0) -> Tensor:
    """Append the weight of each key to its channels, and pad with zeros.

    Args:
        key: [..., d].
        log_weight: in the shape of `key` without its last dim, or one that expands to it.
        size: from :func:`extended_size`.
        scale_extra: see :func:`key_weighted_attention`.
    Returns:
        [..., size].
    """
    columns = weight_columns(log_weight * math.sqrt(key.shape[-1] + scale_extra), key.dtype)
    columns = columns.expand(*key.shape[:-1], -1)
    return functional.pad(torch.cat([key, columns], dim=-1), (0, size - key.shape[-1] - columns.shape[-1]))


def weight_columns(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the channels of a weight: one, or the value and its remainder where `dtype` is narrower.

    Args:
        weight: [...], scaled.
        dtype: of keys.
    Returns:
        [..., channels].
    """
    if dtype.itemsize >= weight.dtype.itemsize:
        return weight.to(dtype).unsqueeze(-1)
    # The gradients of the two columns are the same number; it reaches the weight through the first one only.
    coarse = weight.to(dtype)
    remainder = (weight.detach() - coarse.detach().to(weight.dtype)).to(dtype)
    return torch.stack([coarse, remainder], dim=-1)


def widened_query(query: Tensor, size: int) -> Tensor:
    """Give each query ones for the further channels of keys, of which all but weights are zeros."""
    return functional.pad(query, (0, size - query.shape[-1]), value=1.0)


def extended_values(value: Tensor, size: int) -> Tensor:
    """Pad the channels of each value with zeros: fused kernels need keys and values of one size."""
    return functional.pad(value, (0, size - value.shape[-1]))


def dense_bias_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    log_weight: Tensor | None = None,
    *,
    visible: Tensor | None = None,
    scale_extra: int = 0,
) -> Tensor:
    """Do the same as :func:`key_weighted_attention` with a dense bias, for tests and benchmarks.

    Args:
        query, key, value, log_weight, scale_extra: as there.
        visible: [B, Q, R] bool; None for plain causal attention.
    """
    group_size = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(group_size, dim=1) for x in (key, value))
    logits = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1] + scale_extra)
    if log_weight is not None:
        logits = logits + log_weight[:, None, None, :]
    if visible is None:
        visible = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).tril().unsqueeze(0)
    logits = logits.masked_fill(~visible.unsqueeze(1), float("-inf"))
    return torch.softmax(logits, dim=-1).to(value.dtype) @ value


def _augment(
    query: Tensor, key: Tensor, value: Tensor, log_weight: Tensor, scale_extra: int
) -> tuple[Tensor, Tensor, Tensor]:
    head_size = query.shape[-1]
    size = extended_size(head_size, log_weight.dtype, key.dtype)
    # [B, R] -> [B, 1, R], for all groups
    key = extended_keys(key, log_weight.unsqueeze(1), size, scale_extra=scale_extra)
    return widened_query(query, size), key, extended_values(value, size)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scale: float, visible: Tensor | None = None
) -> Tensor:
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=visible,
        is_causal=causal,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _attend_by_segment(
    query: Tensor, key: Tensor, value: Tensor, *, segments: Segments, scale: float
) -> Tensor:
    if has_kernel_for_documents(query):
        return attend_to_documents(query, key, value, segments, scale=scale)
    return attend_one_by_one(query, key, value, segments, scale=scale)


def attend_one_by_one(
    query: Tensor, key: Tensor, value: Tensor, segments: Segments, *, scale: float
) -> Tensor:
    """Do the same as :func:`attend_to_documents`, document by document."""
    sequences = []
    for *sequence, runs in zip(query.split(1), key.split(1), value.split(1), segments, strict=True):
        # Split at once: the backward of a slice would fill a whole tensor for each document.
        lengths = [stop - start for start, stop in runs]
        documents = zip(*(x.split(lengths, dim=2) for x in sequence), strict=True)
        outputs = [_attend(*document, causal=True, scale=scale) for document in documents]
        sequences.append(torch.cat(outputs, dim=2))
    return torch.cat(sequences, dim=0)
