"""AdamW and the norm of all gradients: what fills Megatron's slots for apex, on torch's own kernels."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

__all__ = ["AdamW", "exact_norm"]

# 512 KiB in float64.
NORM_PART_ELEMENTS = 2**16


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, 2019) on torch's fused kernel, with apex's ``FusedAdam`` state layout.

    The step count is one number of the parameter group, not a tensor of every parameter as in
    ``torch.optim.AdamW``: Megatron's fully reshardable checkpoint stores what a parameter owns as a tensor of
    the parameter's shape, so a per-parameter step cannot be stored. The updates equal those of
    ``torch.optim.AdamW(fused=True)``.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay rates of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        adam_w_mode: Megatron's request for decoupled weight decay; must be True.
        capturable: Megatron's request, from 0.18 on, for a step that can be captured; must be False.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        adam_w_mode: bool = True,
        capturable: bool = False,
    ) -> None:
        if capturable:
            raise ValueError("capturable must be False: steps are not captured as CUDA graphs")
        if not adam_w_mode:
            raise ValueError(
                "decoupled_weight_decay must be True: this optimizer is AdamW, but Adam was asked for"
            )
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` must be None: Megatron passes none."""
        if closure is not None:
            raise ValueError("closure must be None: the loss is computed before the step")
        for group in self.param_groups:
            # Counted on every rank and in empty groups too, so that all ranks agree on it.
            group["step"] += 1
            self._update(group)

    def _update(self, group: dict[str, Any]) -> None:
        params = [param for param in group["params"] if param.grad is not None]
        if not params:
            return
        states = [self.state_of(param) for param in params]
        # The kernel increments each parameter's own count, so they start one below.
        steps = torch.full((len(params),), float(group["step"] - 1), device=params[0].device)
        beta1, beta2 = group["betas"]
        adamw(
            params,
            [param.grad for param in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            max_exp_avg_sqs=[],
            state_steps=list(steps.unbind()),
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def state_of(self, param: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter; that of one without updates is created."""
        state: dict[str, Tensor] = self.state[param]
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        return state


def exact_norm(
    chunk_size: int, noop_flag: Tensor, tensor_lists: list[list[Tensor]], per_tensor: bool
) -> tuple[Tensor, None]:
    """Norm of many tensors together, in the signature of apex's ``multi_tensor_l2norm``.

    On a CPU, a float32 sum over a large tensor is off by some 1e-5, by an amount that depends on how the
    tensor is split over ranks; the clipping of gradients would depend on it too. So the sum runs in float64.

    Args:
        chunk_size, noop_flag, per_tensor: apex's, without meaning here.
        tensor_lists: one list of tensors.
    Returns:
        [1] float32, and None for the norms of each tensor.
    """
    del chunk_size, noop_flag, per_tensor
    norms = [
        torch.linalg.vector_norm(part, dtype=torch.float64)
        for tensor in tensor_lists[0]
        for part in _parts_of(tensor)
    ]
    return torch.linalg.vector_norm(torch.stack(norms)).float().reshape(1), None


def _parts_of(tensor: Tensor) -> Sequence[Tensor]:
    """Return parts whose float64 copies, on which a CPU's kernel works, stay in its cache."""
    if tensor.device.type != "cpu":
        return [tensor]
    parts: Sequence[Tensor] = tensor.flatten().split(NORM_PART_ELEMENTS)
    return parts
