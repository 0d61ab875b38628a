"""Muon for weights of several matrices that are split over tensor-parallel ranks, on torch's functions."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, EPS, _adjust_lr, _zeropower_via_newtonschulz

__all__ = ["MatrixParts", "Muon"]

# Makes updates as large as those of AdamW at the same learning rate (Liu et al., 2025, arXiv 2502.16982).
_SCALE = "match_rms_adamw"
# That of Newton-Schulz iterations.
_PRECISION = torch.bfloat16
_COEFFICIENTS = (DEFAULT_A, DEFAULT_B, DEFAULT_C)


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixParts:
    """Which matrices a weight [rows, columns] on this rank consists of.

    Attributes:
        rows: of the parts in a block of rows. The weight consists of as many blocks as there is room for, and
            a matrix of the rows of its part in all blocks.
        split_dim: dimension of a matrix that tensor-parallel ranks share; None: each holds all of it.
    """

    rows: tuple[int, ...]
    split_dim: int | None


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024) with Nesterov momentum and decoupled weight decay.

    The update of a matrix is that of ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")``: the same
    Newton-Schulz iterations, in bfloat16. A matrix that ranks share is gathered and orthogonalized as a
    whole; every rank does so and takes its share.

    Args:
        params: matrices or parameter groups of them; each has its :class:`MatrixParts` as ``matrix_parts``,
            without which it is one matrix.
        lr: learning rate.
        momentum: decay of the mean of gradients.
        weight_decay: decoupled weight decay.
        num_ns_steps: Newton-Schulz iterations.
        tp_group: ranks that share matrices; all of them take a step together. None: this rank alone.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
        num_ns_steps: int = 5,
        tp_group: ProcessGroup | None = None,
    ) -> None:
        settings = {"momentum": momentum, "weight_decay": weight_decay, "num_ns_steps": num_ns_steps}
        super().__init__(params, {"lr": lr, **settings})
        self._tp_group = tp_group

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient; `closure` must be None: Megatron passes none."""
        if closure is not None:
            raise ValueError("closure must be None: the loss is computed before the step")
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def state_of(self, weight: Tensor) -> dict[str, Tensor]:
        """Return the state of a weight; that of one without updates is created."""
        state: dict[str, Tensor] = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        mean = self.state_of(weight)["momentum_buffer"]
        mean.lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(mean, group["momentum"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        layout = getattr(weight, "matrix_parts", None) or MatrixParts(rows=(weight.shape[0],), split_dim=None)
        ends = list(accumulate(layout.rows))
        for start, end in zip([0, *ends], ends, strict=False):
            # [rows, columns] -> [blocks, rows of a block, columns] -> [blocks, rows of the part, columns]
            target, part = (x.unflatten(0, (-1, ends[-1]))[:, start:end] for x in (weight, direction))
            whole = self._gathered(part.flatten(0, 1).to(_PRECISION), layout.split_dim)
            orthogonal = _zeropower_via_newtonschulz(whole, _COEFFICIENTS, group["num_ns_steps"], EPS)
            own = self._own_share(orthogonal, layout.split_dim)
            rate = _adjust_lr(group["lr"], _SCALE, whole.shape)
            target.add_(own.unflatten(0, target.shape[:2]), alpha=-rate)

    @property
    def _num_ranks(self) -> int:
        return 1 if self._tp_group is None else self._tp_group.size()

    def _gathered(self, part: Tensor, split_dim: int | None) -> Tensor:
        if split_dim is None or self._num_ranks == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self._num_ranks)]
        torch.distributed.all_gather(parts, part.contiguous(), group=self._tp_group)
        return torch.cat(parts, dim=split_dim)

    def _own_share(self, whole: Tensor, split_dim: int | None) -> Tensor:
        if split_dim is None or self._tp_group is None:
            return whole
        return whole.chunk(self._num_ranks, dim=split_dim)[self._tp_group.rank()]
