"""What becomes of the gradients after the last backward of a step.

A pondering model uses each weight several times in one backward, a number of times that changes with J and
with recompute, so gradients are reduced once, when all of them are there.
"""

from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.utils import get_attr_wrapped_model

from megatron_ext.model.model import PonderModel


def finalize_gradients(chunks: list[Any], *args: Any, **kwargs: Any) -> None:
    """Megatron's reductions, and that of an embedding of which the last stage holds a copy for mixtures.

    Before them the sum of this rank's own gradients is kept for :func:`has_finite_own_gradients`: afterwards
    nobody can tell any more which rank a NaN has come from.

    Args:
        chunks: the one wrapped module of this rank; one of Megatron's own holds no such copy.
        args, kwargs: handed on to Megatron's ``finalize_model_grads``.
    """
    for chunk in chunks:
        chunk.own_gradient_sum = torch.stack([buffer.grad_data.sum() for buffer in chunk.buffers]).sum()
    finalize_model_grads(chunks, *args, **kwargs)
    for chunk in chunks:
        module = get_attr_wrapped_model(chunk, "pre_process", return_model_obj=True)
        weight = module.copied_embedding() if isinstance(module, PonderModel) else None
        if weight is not None:
            torch.distributed.all_reduce(weight.main_grad, group=module.embd_group)  # type: ignore[attr-defined]


def has_finite_own_gradients(chunk: Any) -> bool:
    """Whether the gradients this rank has computed in the last step were finite, before any reduction.

    Where the reduction overlaps with backward, gradients of its data-parallel group are among them.

    Args:
        chunk: the wrapped module.
    """
    return bool(torch.isfinite(chunk.own_gradient_sum))
