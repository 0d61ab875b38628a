"""From the product of a layer's query, key and value weights to what attention kernels read, in one function.

Rotating, appending the weight of each key and splitting into heads are passes over memory; done one by one,
each has a copy in forward and one in backward.

R = rows, B = batch, A = query heads, G = key/value heads, d = head size, w = d and the channels of weights.
"""

import math
from typing import Any

import torch
from torch import Tensor

from megatron_ext.ponder.attention import extended_size, weight_columns
from megatron_ext.ponder.fusing import fused, wide


def rotary_turns(angles: Tensor, dtype: torch.dtype) -> Tensor:
    """Return cosines and sines of :func:`megatron_ext.ponder.rotary.rotary_angles`, once for all layers.

    Args:
        angles: [R, B, 1, rotary_size], the same in both halves.
        dtype: of queries and keys.
    Returns:
        [2, R, B, 1, rotary_size / 2].
    """
    half = angles[..., : angles.shape[-1] // 2]
    return torch.stack([half.cos(), half.sin()]).to(dtype)


def key_columns(log_weight: Tensor, scaled_size: int, dtype: torch.dtype) -> Tensor:
    """Return the channels by which kernels take the weights of keys, once for all layers, without gradient.

    Args:
        log_weight: [B, R].
        scaled_size: d + e, see :func:`megatron_ext.ponder.attention.key_weighted_attention`.
        dtype: of queries and keys.
    Returns:
        [R, B, 1, channels].
    """
    columns = weight_columns(log_weight.detach() * math.sqrt(scaled_size), dtype)
    # [B, R, C] -> [R, B, 1, C]
    return columns.transpose(0, 1).unsqueeze(2)


def rotated_heads(
    mixed: Tensor,
    turns: Tensor,
    log_weight: Tensor | None = None,
    columns: Tensor | None = None,
    *,
    head_size: int,
    scale_extra: int = 0,
    fuses: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Split into heads, rotate queries and keys, and append the weights of keys.

    Args:
        mixed: [R, B, G, (A / G + 2) * d], the queries of a group, its key and its value.
        turns: from :func:`rotary_turns`.
        log_weight: [B, R], for its gradient; None appends nothing.
        columns: of `log_weight`, from :func:`key_columns`.
        head_size: d.
        scale_extra: e.
        fuses: compute by functions that can be compiled, see :mod:`megatron_ext.ponder.fusing`.
    Returns:
        [R, B, A, w], [R, B, G, w] and [R, B, G, w].
    """
    if not fuses and not torch.is_grad_enabled():
        weight_dtype = None if log_weight is None else log_weight.dtype
        return _split_and_rotated(mixed, turns, columns, weight_dtype, head_size)
    weight_scale = math.sqrt(head_size + scale_extra)
    way = _FusedRotatedHeads if fuses else _RotatedHeads
    results: tuple[Tensor, Tensor, Tensor] = way.apply(  # type: ignore[no-untyped-call]
        mixed, turns, log_weight, columns, head_size, weight_scale
    )
    return results


def merged_heads(output: Tensor, head_size: int, *, fuses: bool = False) -> Tensor:
    """Bring the output of attention back into the layout of rows, without the channels of weights.

    Args:
        output: [B, A, R, w], of values whose channels from d on are zeros.
        head_size: d.
        fuses: see :func:`rotated_heads`.
    Returns:
        [R, B, A * d].
    """
    if output.shape[-1] > head_size and torch.is_grad_enabled():
        merged: Tensor = _MergedHeads.apply(output, head_size, fuses)  # type: ignore[no-untyped-call]
        return merged
    # [B, A, R, d] -> [R, B, A * d]
    return output[..., :head_size].permute(2, 0, 1, 3).flatten(2).contiguous()


def _split_and_rotated(
    mixed: Tensor, turns: Tensor, columns: Tensor | None, weight_dtype: torch.dtype | None, head_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    # [R, B, G, (A / G + 2) * d] -> [R, B, G, A / G + 2, d]
    heads = mixed.unflatten(-1, (-1, head_size))
    rows, group_size = heads.shape[:3], heads.shape[3] - 2
    size = extended_size(head_size, weight_dtype, mixed.dtype)
    query = mixed.new_empty(*rows, group_size, size)
    key, value = mixed.new_empty(*rows, size), mixed.new_empty(*rows, size)
    _rotate(heads[..., :group_size, :], turns.unsqueeze(4), query[..., :head_size])
    _rotate(heads[..., group_size, :], turns, key[..., :head_size])
    value[..., :head_size] = heads[..., group_size + 1, :]
    if columns is not None:
        end = head_size + columns.shape[-1]
        query[..., head_size:] = 1
        key[..., head_size:end] = columns
        key[..., end:] = 0
        value[..., head_size:] = 0
    return query.flatten(2, 3), key, value


def _remember(
    ctx: Any, turns: Tensor, log_weight: Tensor | None, head_size: int, weight_scale: float
) -> None:
    """Keep what backward needs of a forward of heads, which is nothing of the heads themselves."""
    ctx.save_for_backward(turns)
    ctx.head_size, ctx.weight_scale = head_size, weight_scale
    ctx.weight_dtype = None if log_weight is None else log_weight.dtype


class _RotatedHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        mixed: Tensor,
        turns: Tensor,
        log_weight: Tensor | None,
        columns: Tensor | None,
        head_size: int,
        weight_scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        _remember(ctx, turns, log_weight, head_size, weight_scale)
        return _split_and_rotated(mixed, turns, columns, ctx.weight_dtype, head_size)

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor | None, ...]:
        (turns,) = ctx.saved_tensors
        d = ctx.head_size
        query = query.unflatten(2, (key.shape[2], -1))
        rows, group_size = query.shape[:3], query.shape[3]
        heads = query.new_empty(*rows, group_size + 2, d)
        _rotate(query[..., :d], turns.unsqueeze(4), heads[..., :group_size, :], inverse=True)
        _rotate(key[..., :d], turns, heads[..., group_size, :], inverse=True)
        heads[..., group_size + 1, :] = value[..., :d]
        weight = None
        if ctx.weight_dtype is not None:
            # The columns of a weight have one gradient; [R, B, G] -> [B, R]
            weight = key[..., d].sum(dim=2, dtype=ctx.weight_dtype).transpose(0, 1) * ctx.weight_scale
        return heads.flatten(3), None, weight, None, None, None


class _FusedRotatedHeads(torch.autograd.Function):
    """:class:`_RotatedHeads`, with rotations in at least float32."""

    @staticmethod
    def forward(
        ctx: Any,
        mixed: Tensor,
        turns: Tensor,
        log_weight: Tensor | None,
        columns: Tensor | None,
        head_size: int,
        weight_scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        _remember(ctx, turns, log_weight, head_size, weight_scale)
        size = extended_size(head_size, ctx.weight_dtype, mixed.dtype)
        return _heads_of(mixed, turns, columns, head_size, size)

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor | None, ...]:
        (turns,) = ctx.saved_tensors
        mixed = _gradient_of_mixed(query, key, value, turns, ctx.head_size)
        weight = None
        if ctx.weight_dtype is not None:
            weight = _gradient_of_weight(key, ctx.head_size, ctx.weight_dtype, ctx.weight_scale)
        return mixed, None, weight, None, None, None


class _MergedHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, head_size: int, fuses: bool) -> Tensor:
        ctx.size = output.shape[-1]
        ctx.head_size, ctx.fuses = head_size, fuses
        # [B, A, R, w] -> [R, B, A * d]
        return output[..., :head_size].permute(2, 0, 1, 3).flatten(2).contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.fuses:
            return _widened(gradient, ctx.head_size, ctx.size).permute(1, 2, 0, 3), None, None
        # [R, B, A * d] -> [R, B, A, d]
        heads = gradient.unflatten(2, (-1, ctx.head_size))
        whole = heads.new_empty(*heads.shape[:3], ctx.size)
        whole[..., : ctx.head_size] = heads
        # Of no effect, because values are zero there, but not if it were infinite.
        whole[..., ctx.head_size :] = 0
        return whole.permute(1, 2, 0, 3), None, None


def _rotate(source: Tensor, turns: Tensor, target: Tensor, *, inverse: bool = False) -> None:
    """Write the rotated channels of `source` to `target`; those beyond the turns are copied."""
    cos, sin = turns
    half, sign = cos.shape[-1], -1 if inverse else 1
    first, second = source[..., :half], source[..., half : 2 * half]
    torch.mul(first, cos, out=target[..., :half]).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=target[..., half : 2 * half]).addcmul_(first, sin, value=sign)
    if 2 * half < source.shape[-1]:
        target[..., 2 * half :] = source[..., 2 * half :]


@fused
def _heads_of(
    mixed: Tensor, turns: Tensor, columns: Tensor | None, head_size: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    # [R, B, G, (A / G + 2) * d] -> [R, B, G, A / G + 2, d]
    heads = mixed.unflatten(-1, (-1, head_size))
    group_size = heads.shape[3] - 2
    query = _rotated(heads[..., :group_size, :], turns.unsqueeze(4), inverse=False)
    key, value = _rotated(heads[..., group_size, :], turns, inverse=False), [heads[..., group_size + 1, :]]
    if columns is not None:
        num_columns = columns.shape[-1]
        query.append(_constant(heads[..., :group_size, :], 1.0, size - head_size))
        key.append(columns.expand(*key[0].shape[:-1], num_columns))
        key.append(_constant(key[0], 0.0, size - head_size - num_columns))
        value.append(_constant(key[0], 0.0, size - head_size))
    whole = [torch.cat([x.to(mixed.dtype) for x in parts], dim=-1) for parts in (query, key, value)]
    return whole[0].flatten(2, 3), whole[1], whole[2]


@fused
def _gradient_of_mixed(query: Tensor, key: Tensor, value: Tensor, turns: Tensor, head_size: int) -> Tensor:
    heads = query.unflatten(2, (key.shape[2], -1))[..., :head_size]
    of_query = torch.cat(_rotated(heads, turns.unsqueeze(4), inverse=True), dim=-1)
    of_key = torch.cat(_rotated(key[..., :head_size], turns, inverse=True), dim=-1).unsqueeze(3)
    parts = (of_query, of_key, value[..., :head_size].unsqueeze(3))
    return torch.cat([x.to(value.dtype) for x in parts], dim=3).flatten(3)


@fused
def _gradient_of_weight(key: Tensor, head_size: int, dtype: torch.dtype, weight_scale: float) -> Tensor:
    # The columns of a weight have one gradient; [R, B, G] -> [B, R]
    return key[..., head_size].sum(dim=2, dtype=dtype).transpose(0, 1) * weight_scale


@fused
def _widened(gradient: Tensor, head_size: int, size: int) -> Tensor:
    # [R, B, A * d] -> [R, B, A, d]
    heads = gradient.unflatten(2, (-1, head_size))
    return torch.cat([heads, _constant(heads, 0.0, size - head_size)], dim=-1)


def _rotated(source: Tensor, turns: Tensor, *, inverse: bool) -> list[Tensor]:
    """Return the halves of the rotated channels, in at least float32, and the channels beyond the turns."""
    cos, sin = wide(turns[0]), wide(turns[1])
    sin = -sin if inverse else sin
    half = cos.shape[-1]
    first, second = wide(source[..., :half]), wide(source[..., half : 2 * half])
    rest = source[..., 2 * half :]
    turned = [first * cos - second * sin, second * cos + first * sin]
    return [*turned, rest] if rest.shape[-1] > 0 else turned


def _constant(like: Tensor, value: float, num_channels: int) -> Tensor:
    """Return channels of one value, [..., num_channels], for each vector of `like`."""
    return like.new_full((*like.shape[:-1], num_channels), value)
