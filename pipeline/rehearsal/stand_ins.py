"""What the meta device lacks: kernels that CUDA has as one operation, and neighbours that send tensors."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional

import megatron_ext.adamw
import megatron_ext.model.attention
from megatron_ext.model.kernels import is_cudnn_preferred
from megatron_ext.ponder import attention, documents, joined_attention, step_attention
from megatron_ext.ponder.fusing import compiler
from pipeline.rehearsal.ledger import Ledger

aten = torch.ops.aten

# FlashAttention's largest head; its kernels exist for heads of these sizes and compute smaller ones in them.
FLASH_LARGEST_HEAD = 256
FLASH_TEMPLATES = (32, 64, 96, 128, 192, 256)
# cuDNN's on recent devices; up to 136 channels were seen to run.
CUDNN_LARGEST_HEAD = 256
# Heads that the memory-efficient kernel takes are multiples of this.
_HEAD_STEP = 8


@contextmanager
def device_kernels(ledger: Ledger) -> Iterator[None]:
    """Give the meta device what torch has for CUDA only, and let process groups exist without their peers."""
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        replace(functional, "scaled_dot_product_attention", _attention(ledger))
        norm = _rms_norm(ledger)
        replace(functional, "rms_norm", norm)
        replace(torch, "rms_norm", norm)
        replace(attention, "has_kernel_for_documents", _takes_flash(documents.has_kernel_for_documents))
        replace(joined_attention, "has_fused_kernel", _takes_flash(joined_attention.has_fused_kernel))
        replace(joined_attention, "kernel_of", _kernel(joined_attention.kernel_of))
        replace(megatron_ext.model.attention, "can_join", _takes_flash(step_attention.can_join))
        replace(megatron_ext.adamw, "adamw", _adamw(ledger))
        replace(compiler, "run", ledger.run_as_kernel)
        replace(torch, "tensor", _tensor(ledger))
        replace(torch.distributed, "new_group", _new_group(torch.distributed.new_group))
        yield


def attention_kernel(query: Tensor, key: Tensor, *, has_mask: bool) -> str:
    """Return the kernel that torch takes on CUDA: cudnn, flash, efficient or math.

    The rules are those of ``sdp_utils.cpp``: cuDNN, where it is asked for, and FlashAttention need half
    precision, and FlashAttention no mask, and heads of at most 256; the memory-efficient kernel takes float32
    and masks, but no groups of heads with them.
    """
    is_half = _is_half(query)
    if is_half and is_cudnn_preferred() and query.shape[-1] <= CUDNN_LARGEST_HEAD:
        return "cudnn"
    if is_half and not has_mask and query.shape[-1] <= FLASH_LARGEST_HEAD:
        return "flash"
    is_grouped = query.shape[1] != key.shape[1]
    return "math" if query.dtype == torch.float64 or is_grouped else "efficient"


def _is_half(query: Tensor) -> bool:
    return query.dtype in (torch.float16, torch.bfloat16)


def _attention(ledger: Ledger) -> Callable[..., Tensor]:
    original = functional.scaled_dot_product_attention

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if not query.is_meta:
            return original(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        kernel = attention_kernel(query, key, has_mask=attn_mask is not None)
        ledger.count_attention(kernel, query.shape[-1], is_grouped=enable_gqa, has_mask=attn_mask is not None)
        if kernel == "math":
            return aten._scaled_dot_product_attention_math(  # type: ignore[no-any-return]  # an operator
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )[0]
        size = query.shape[-1]
        scale = 1 / math.sqrt(size) if scale is None else scale
        padding = (0, -size % _HEAD_STEP)
        if padding[1]:
            query, key, value = (functional.pad(x, padding) for x in (query, key, value))
        if kernel in ("cudnn", "flash"):
            # Both keep the same tensors.
            output = aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )[0]
        else:
            output = aten._scaled_dot_product_efficient_attention(
                query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale
            )[0]
        return output[..., :size] if padding[1] else output  # type: ignore[no-any-return]  # an operator

    return attend


def _takes_flash(original: Callable[[Tensor], bool]) -> Callable[[Tensor], bool]:
    def takes_flash(query: Tensor) -> bool:
        if not query.is_meta:
            return original(query)
        # Whatever kernel a call of attention would take.
        size = query.shape[-1]
        return _is_half(query) and size <= FLASH_LARGEST_HEAD and size % _HEAD_STEP == 0

    return takes_flash


def _kernel(original: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def kernel_of(query: Tensor) -> Any:
        if query.is_meta and joined_attention.has_fused_kernel(query):
            return joined_attention.CudaKernel()
        return original(query)

    return kernel_of


def _rms_norm(ledger: Ledger) -> Callable[..., Tensor]:
    original = functional.rms_norm

    class Norm(torch.autograd.Function):
        """One kernel, which keeps its input and a number per row; meta would run its parts."""

        @staticmethod
        def forward(ctx: Any, values: Tensor, weight: Tensor) -> Tensor:
            scales = values.new_empty(values.shape[:-1], dtype=torch.float32)
            ctx.save_for_backward(values, weight, scales)
            ledger.count_kernels(1, 2 * values.nbytes)
            return torch.empty_like(values)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
            values, weight, _ = ctx.saved_tensors
            del gradient
            ledger.count_kernels(2, 3 * values.nbytes)
            return torch.empty_like(values), torch.empty_like(weight)

    def norm(values: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        if not values.is_meta or weight is None:
            return original(values, shape, weight, eps)
        normed: Tensor = Norm.apply(values, weight)  # type: ignore[no-untyped-call]
        return normed

    return norm


def _adamw(ledger: Ledger) -> Callable[..., None]:
    # The fused kernel takes about so many tensors at once.
    tensors_per_kernel = 24

    def update(params: list[Tensor], *args: Any, **kwargs: Any) -> None:
        del kwargs
        # Gradients are read; weights and both moments are read and written.
        gradients, *moments = args[:3]
        updated = [*params, *(tensor for each in moments for tensor in each)]
        num_bytes = sum(tensor.nbytes for tensor in (*gradients, *updated, *updated))
        ledger.count_kernels(-(-len(params) // tensors_per_kernel), num_bytes)

    return update


def _tensor(ledger: Ledger) -> Callable[..., Tensor]:
    original = torch.tensor

    def make(data: Any, **kwargs: Any) -> Tensor:
        # Torch copies the values to the device without an operation of its own.
        target = kwargs.get("device")
        if target is not None and torch.device(target).type == "meta":
            ledger.wait("copy from the host")
        return original(data, **kwargs)

    return make


def _new_group(original: Callable[..., Any]) -> Callable[..., Any]:
    def new_group(*args: Any, **kwargs: Any) -> Any:
        # Every group counts only, whatever would connect it.
        for name in ("backend", "pg_options", "use_local_synchronization"):
            kwargs.pop(name, None)
        return original(*args, **kwargs)

    return new_group
