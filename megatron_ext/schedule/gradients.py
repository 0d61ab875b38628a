"""Reduction of the gradients after the last backward of a step.

A pondering model uses each weight several times in one backward, a number of times that changes with J and
with recompute, so gradients are reduced once, when all of them are complete.
"""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.utils import get_attr_wrapped_model

from megatron_ext.model.model import PonderModel
from megatron_ext.protocols import WrappedModel


def finalize_gradients(chunks: Sequence[WrappedModel], *args: Any, **kwargs: Any) -> None:
    """Run Megatron's reductions, and that of an embedding of which the last stage holds a copy for mixtures.

    The sum of this rank's own gradients is kept first, for :func:`has_finite_own_gradients`: after the
    reduction a NaN is on all ranks, and which one it came from cannot be told any more.

    Args:
        chunks: the one wrapped module of this rank; a model of Megatron's own holds no such copy.
        args, kwargs: passed on to Megatron's ``finalize_model_grads``.
    """
    for chunk in chunks:
        chunk.own_gradient_sum = torch.stack([buffer.grad_data.sum() for buffer in chunk.buffers]).sum()
    finalize_model_grads(chunks, *args, **kwargs)
    for chunk in chunks:
        module = get_attr_wrapped_model(chunk, "pre_process", return_model_obj=True)
        weight = module.copied_embedding() if isinstance(module, PonderModel) else None
        if weight is not None:
            torch.distributed.all_reduce(weight.main_grad, group=module.embd_group)  # type: ignore[attr-defined]


def has_finite_own_gradients(chunk: WrappedModel) -> bool:
    """Return whether the gradients this rank computed in the last step were finite before any reduction.

    Where the reduction overlaps with backward, gradients of its data-parallel group are among them.
    """
    return bool(torch.isfinite(chunk.own_gradient_sum))
