"""The rows of a pass as one tensor, which is what Megatron's pipeline sends between stages.

The column of :class:`PassRows` (one number per row) is appended to the features. It may be wider than the
rows (float32 beside bfloat16 rows); then its bits are sent as several narrow columns, forward and backward,
so that nothing is rounded.
"""

from typing import Any

import torch
from torch import Tensor

from megatron_ext.methods.base import PassRows
from megatron_ext.parallel.tensor import contiguous_gradient


def encode(moving: PassRows) -> Tensor:
    """Join rows [R, B, H] and their column into one tensor, [R, B, H + columns]."""
    if moving.column is None:
        return moving.rows.contiguous()
    encoded: Tensor = _Encode.apply(moving.rows, moving.column)  # type: ignore[no-untyped-call]
    return encoded


def decode(sent: Tensor, hidden_size: int) -> PassRows:
    """Undo :func:`encode`; the features beyond `hidden_size` are the column."""
    if sent.shape[-1] == hidden_size:
        return PassRows(rows=contiguous_gradient(sent))
    rows, column = _Decode.apply(sent, hidden_size)  # type: ignore[no-untyped-call]
    return PassRows(rows=rows, column=column)


def _join(rows: Tensor, column: Tensor) -> Tensor:
    # [R, B] -> [R, B, columns], bit by bit
    return torch.cat([rows, column.contiguous().unsqueeze(-1).view(rows.dtype)], dim=-1)


def _split(joined: Tensor, hidden_size: int) -> tuple[Tensor, Tensor]:
    bits = joined[..., hidden_size:].contiguous()
    column_dtype = torch.promote_types(joined.dtype, torch.float32)
    return joined[..., :hidden_size].contiguous(), bits.view(column_dtype).squeeze(-1)


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, column: Tensor) -> Tensor:
        ctx.hidden_size = rows.shape[-1]
        return _join(rows, column)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return _split(gradient, ctx.hidden_size)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, joined: Tensor, hidden_size: int) -> tuple[Tensor, Tensor]:
        del ctx
        return _split(joined, hidden_size)

    @staticmethod
    def backward(ctx: Any, rows: Tensor, column: Tensor) -> tuple[Tensor, None]:
        del ctx
        return _join(rows, column), None
