"""Activations, norms and sums of a layer as functions that can be compiled, with their own backward.

They compute in at least float32 what :mod:`megatron_ext.model.layers` computes operation by operation, and
keep only their inputs. R = rows, B = batch, H = hidden size, F = inner size of this rank.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_ext.ponder.fusing import fused, wide


def gated_silu(inner: Tensor) -> Tensor:
    """Return ``silu(gate) * linear``: [R, B, 2 F], gate and linear -> [R, B, F]."""
    activated: Tensor = _GatedSilu.apply(inner)  # type: ignore[no-untyped-call]
    return activated


def biased_gelu(inner: Tensor, bias: Tensor) -> Tensor:
    """Return ``gelu(inner + bias)``, the exact one: [R, B, F] and [F] -> [R, B, F]."""
    activated: Tensor = _BiasedGelu.apply(inner, bias)  # type: ignore[no-untyped-call]
    return activated


def normed_beside(residual: Tensor, norm: nn.LayerNorm | nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """Return the residual stream and its norm, whose gradients are added in one function.

    Args:
        residual: [R, B, H].
        norm: over H.
    Returns:
        Both, [R, B, H]; what follows uses the returned residual stream, not the given one.
    """
    bias = norm.bias if isinstance(norm, nn.LayerNorm) else None
    both: tuple[Tensor, Tensor] = _NormBeside.apply(  # type: ignore[no-untyped-call]
        residual, norm.weight, bias, norm.eps, isinstance(norm, nn.LayerNorm)
    )
    return both


def sum_with_biases(residual: Tensor, added: Tensor, *biases: Tensor) -> Tensor:
    """Return ``residual + added + biases``: [R, B, H], [R, B, H] and each [H] -> [R, B, H]."""
    total: Tensor = _SumWithBiases.apply(residual, added, *biases)  # type: ignore[no-untyped-call]
    return total


class _GatedSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inner: Tensor) -> Tensor:
        ctx.save_for_backward(inner)
        return _gated_silu(inner)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (inner,) = ctx.saved_tensors
        return _gated_silu_gradient(inner, gradient)


class _BiasedGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inner: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(inner, bias)
        return _biased_gelu(inner, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        inner, bias = ctx.saved_tensors
        of_inner = _biased_gelu_gradient(inner, bias, gradient)
        return of_inner, _sum_of_rows(of_inner) if ctx.needs_input_grad[1] else None


class _NormBeside(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, is_centered: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(residual, weight)
        ctx.eps, ctx.is_centered = eps, is_centered
        return residual.view_as(residual), _norm(residual, weight, bias, eps, is_centered)

    @staticmethod
    def backward(ctx: Any, beside: Tensor, gradient: Tensor) -> tuple[Tensor | None, ...]:
        residual, weight = ctx.saved_tensors
        settings = ctx.eps, ctx.is_centered
        _, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        of_residual = _norm_gradient(residual, weight, gradient, beside, *settings)
        of_weight = _norm_weight_gradient(residual, gradient, *settings) if needs_weight else None
        of_bias = _sum_of_rows(gradient) if needs_bias else None
        return of_residual, of_weight, of_bias, None, None


class _SumWithBiases(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor, added: Tensor, *biases: Tensor) -> Tensor:
        del ctx
        return _sum(residual, added, *biases)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # The same for every bias.
        is_needed = ctx.needs_input_grad[2:]
        of_bias = _sum_of_rows(gradient) if any(is_needed) else None
        return gradient, gradient, *(of_bias if needed else None for needed in is_needed)


@fused
def _gated_silu(inner: Tensor) -> Tensor:
    gate, linear = wide(inner).chunk(2, dim=-1)
    return (functional.silu(gate) * linear).to(inner.dtype)


@fused
def _gated_silu_gradient(inner: Tensor, gradient: Tensor) -> Tensor:
    gate, linear = wide(inner).chunk(2, dim=-1)
    along, share = wide(gradient), torch.sigmoid(gate)
    of_gate = along * linear * share * (1 + gate * (1 - share))
    return torch.cat([of_gate, along * gate * share], dim=-1).to(inner.dtype)


@fused
def _biased_gelu(inner: Tensor, bias: Tensor) -> Tensor:
    return functional.gelu(wide(inner) + bias).to(inner.dtype)


@fused
def _biased_gelu_gradient(inner: Tensor, bias: Tensor, gradient: Tensor) -> Tensor:
    given = wide(inner) + bias
    below = 0.5 * (1 + torch.erf(given * math.sqrt(0.5)))
    density = torch.exp(-0.5 * given * given) / math.sqrt(2 * math.pi)
    return (wide(gradient) * (below + given * density)).to(inner.dtype)


@fused
def _norm(residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, is_centered: bool) -> Tensor:
    normed = _standardized(residual, eps, is_centered)[0] * weight
    return (normed if bias is None else normed + bias).to(residual.dtype)


@fused
def _norm_gradient(
    residual: Tensor, weight: Tensor, gradient: Tensor, beside: Tensor, eps: float, is_centered: bool
) -> Tensor:
    standard, scale = _standardized(residual, eps, is_centered)
    along = wide(gradient) * weight
    changed = along - standard * (along * standard).mean(dim=-1, keepdim=True)
    if is_centered:
        changed = changed - along.mean(dim=-1, keepdim=True)
    return (changed * scale + beside).to(residual.dtype)


@fused
def _norm_weight_gradient(residual: Tensor, gradient: Tensor, eps: float, is_centered: bool) -> Tensor:
    standard = _standardized(residual, eps, is_centered)[0]
    return (wide(gradient) * standard).sum(dim=(0, 1)).to(residual.dtype)


@fused
def _sum_of_rows(rows: Tensor) -> Tensor:
    return wide(rows).sum(dim=(0, 1)).to(rows.dtype)


@fused
def _sum(first: Tensor, *others: Tensor) -> Tensor:
    total = wide(first)
    for other in others:
        total = total + other
    return total.to(first.dtype)


def _standardized(rows: Tensor, eps: float, is_centered: bool) -> tuple[Tensor, Tensor]:
    """Return rows of mean square 1, of mean 0 if centered, in at least float32, and what scaled them."""
    rows = wide(rows)
    if is_centered:
        rows = rows - rows.mean(dim=-1, keepdim=True)
    scale = torch.rsqrt(rows.square().mean(dim=-1, keepdim=True) + eps)
    return rows * scale, scale
