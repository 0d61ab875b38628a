"""What stays on a rank from one pass of a micro-batch to its later ones, gradients included.

In one graph that is ordinary autograd. But passes may be backward steps of their own (on pipeline stages) and
may be computed twice (activation recompute), so that a tensor of one pass cannot be part of another's graph.
Then it is kept as a leaf: later passes use the leaf, whose gradient is complete when the backward of the pass
that made it begins, because that backward needs the gradient of what the pass handed to its successors.
"""

from typing import Any

import torch
from torch import Tensor


class PassMemory:
    """Tensors of one micro-batch by name."""

    def __init__(self, *, by_leaves: bool = False) -> None:
        """Start empty.

        Args:
            by_leaves: cut the graph at what is kept. Gradients are then right after ``backward()``, not with
                ``torch.autograd.grad``, which does not reach leaves.
        """
        self._by_leaves = by_leaves
        self._kept: dict[str, Tensor] = {}

    def keep(self, name: str, value: Tensor) -> Tensor:
        """Remember a tensor of this pass for later ones.

        A second call under the same name is the same pass computed again, and keeps the first leaf.

        Args:
            name: to recall it by.
            value: floating point.
        Returns:
            The value, to be used by this pass from here on: its gradient takes in that of the later uses.
        """
        if not self._by_leaves:
            self._kept[name] = value
            return value
        # Not by the grad mode of this call, which recompute turns off the first time.
        leaf = self._kept.setdefault(name, value.detach().requires_grad_())
        taken_in: Tensor = _TakeInLaterGradient.apply(value, _Hidden(leaf))  # type: ignore[no-untyped-call]
        return taken_in

    def note(self, name: str, value: Tensor) -> None:
        """Remember the numbers of a tensor alone, without gradient."""
        self._kept[name] = value.detach()

    def recall(self, name: str) -> Tensor:
        """The tensor that an earlier pass has kept.

        Raises:
            KeyError: none has.
        """
        return self._kept[name]


class _Hidden:
    """Hides a leaf from autograd, which would follow it into the graph."""

    __slots__ = ("leaf",)

    def __init__(self, leaf: Tensor) -> None:
        self.leaf = leaf


class _TakeInLaterGradient(torch.autograd.Function):
    """Identity whose backward adds what later passes have accumulated on the leaf, once."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, hidden: _Hidden) -> Tensor:
        ctx.hidden = hidden
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        leaf = ctx.hidden.leaf
        later, leaf.grad = leaf.grad, None
        return (gradient if later is None else gradient + later), None
