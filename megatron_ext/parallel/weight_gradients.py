"""Gradients of weights, added to a float32 sum of theirs inside of the product.

A pondering model uses each weight in every pass. Autograd sums the gradients of these uses in the weight's
own precision before Megatron's data parallelism adds them to ``weight.main_grad``, in float32: in bf16 each
sum loses bits, and needs a second set of gradients. Here the product of each use adds to ``main_grad`` itself
and autograd gets no gradient for the weight; what other operations give it is still added by Megatron's hook.

R = rows, O = output size, I = input size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def sum_of_gradients(weight: Tensor) -> Tensor | None:
    """Return the sum of a weight's gradients from Megatron's data parallelism, [O, I]; None: it has none.

    A weight that autograd has saved may be a copy without this attribute.
    """
    total: Tensor | None = getattr(weight, "main_grad", None)
    return total if weight.requires_grad else None


def weight_gradient(gradient: Tensor, inputs: Tensor, total: Tensor | None) -> Tensor | None:
    """Return the gradient of a weight for one use, or add it to a sum.

    Args:
        gradient: of the outputs, [R, O].
        inputs: [R, I].
        total: from :func:`sum_of_gradients`; None: there is none to add to.
    Returns:
        [O, I]; None where it has been added.
    """
    if total is None:
        return gradient.t() @ inputs
    add_product(total, gradient, inputs)
    return None


def add_product(total: Tensor, gradient: Tensor, inputs: Tensor) -> None:
    """Add ``gradient^T inputs`` to a sum without rounding the product to the precision of its factors.

    Args:
        total: [O, I], float32 or the dtype of the factors.
        gradient: [R, O].
        inputs: [R, I].
    """
    if total.dtype == gradient.dtype:
        torch.addmm(total, gradient.t(), inputs, out=total)
    elif gradient.device.type in ("cuda", "meta"):
        torch.addmm(total, gradient.t(), inputs, out_dtype=total.dtype, out=total)
    else:
        # Torch has the product of mixed precision for CUDA only.
        torch.addmm(total, gradient.t().to(total.dtype), inputs.to(total.dtype), out=total)


def accumulating_linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``inputs weight^T + bias``, whose backward adds to the sum of the weight's gradients.

    Args:
        inputs: [..., I].
        weight: [O, I].
        bias: [O], or None.
    Returns:
        [..., O].
    """
    if sum_of_gradients(weight) is None:
        return functional.linear(inputs, weight, bias)
    outputs: Tensor = _AccumulatingLinear.apply(inputs, weight, bias)  # type: ignore[no-untyped-call]
    return outputs


def for_megatron(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a product of Megatron's so that it adds to a sum where there is one.

    Megatron would return a gradient of arbitrary values and mark the weight as done, which makes its hook
    drop what other uses of the weight have given it. So it gets a view of the weight, which has no such mark.

    Args:
        settings: keywords of ``_forward_impl`` of Megatron's parallel linear layers.
    """
    if not settings["gradient_accumulation_fusion"]:
        return settings
    weight = settings["weight"]
    if sum_of_gradients(weight) is None or not torch.is_grad_enabled():
        return settings | {"gradient_accumulation_fusion": False}
    view: Any = _View.apply(weight)  # type: ignore[no-untyped-call]
    view.main_grad = weight.main_grad
    return settings | {"weight": view}


def megatron_add_product(inputs: Tensor, gradient: Tensor, total: Tensor) -> None:
    """Do what ``wgrad_gemm_accum_fp32`` of apex does, under whose name Megatron calls it."""
    add_product(total, gradient, inputs)


class _AccumulatingLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.total = sum_of_gradients(weight)
        ctx.save_for_backward(inputs, weight)
        return functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        of_weight = None
        if needs_weight:
            of_weight = weight_gradient(rows, inputs.flatten(0, -2), ctx.total)
        of_bias = rows.sum(dim=0) if needs_bias else None
        return gradient @ weight if needs_inputs else None, of_weight, of_bias


class _View(torch.autograd.Function):
    """The weight itself; no gradient comes back where it has been added to the sum."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> Tensor | None:
        del ctx
        return gradient
