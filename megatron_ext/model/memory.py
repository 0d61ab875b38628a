"""Tensors that later passes of a micro-batch use on the same rank, with their gradients.

With all passes in one graph that is ordinary autograd. But on pipeline stages each pass has a backward of
its own, and under activation recompute its forward runs twice, so a tensor of one pass cannot be part of the
graph of another. It is then kept as a leaf: later passes use the leaf, and their gradients accumulate on it.

An identity in the graph of the pass that made the tensor adds the leaf's gradient in backward. By then it is
complete: that backward starts from the gradient of what the pass handed to the next one, so the backward of
all later passes has finished.
"""

from typing import Any

import torch
from torch import Tensor


class PassMemory:
    """Tensors of one micro-batch by name."""

    def __init__(self, *, by_leaves: bool = False) -> None:
        """Start empty.

        Args:
            by_leaves: cut the graph at the kept tensors. Gradients are then right with ``backward()``, not
                with ``torch.autograd.grad``, which does not accumulate on leaves.
        """
        self._by_leaves = by_leaves
        self._kept: dict[str, Tensor] = {}

    def keep(self, name: str, value: Tensor) -> Tensor:
        """Keep a tensor of this pass for later ones.

        A second call with the same name comes from recompute, or from the first pass that has gradients; the
        first leaf stays.

        Args:
            name: to recall it by.
            value: floating point.
        Returns:
            The value, for further use in this pass: its gradient includes that of the later uses.
        """
        if not self._by_leaves:
            self._kept[name] = value
            return value
        # Whatever the grad mode of this call: recompute turns it off in the first forward.
        leaf = self._kept.setdefault(name, value.detach().requires_grad_())
        kept: Tensor = _AddLaterGradient.apply(value, _Hidden(leaf))  # type: ignore[no-untyped-call]
        return kept

    def keep_aside(self, name: str, value: Tensor, used: Tensor) -> Tensor:
        """Keep a tensor that this pass itself makes no use of.

        Args:
            name, value: as in :meth:`keep`.
            used: floating point, of this pass; its backward is what brings the gradient of the later uses.
        Returns:
            `used`, for further use in this pass.
        """
        kept = self.keep(name, value)
        if not self._by_leaves:
            return used
        reached: Tensor = _ReachThrough.apply(used, kept)  # type: ignore[no-untyped-call]
        return reached

    def note(self, name: str, value: Tensor) -> None:
        """Keep the values of a tensor without gradient."""
        self._kept[name] = value.detach()

    def forget(self, name: str) -> None:
        """Let go of a tensor that no later pass recalls, if it was kept."""
        self._kept.pop(name, None)

    def clear(self) -> None:
        """Let go of everything, when no pass of the micro-batch is left, in either direction."""
        self._kept.clear()

    def recall(self, name: str) -> Tensor:
        """Return the tensor that an earlier pass has kept.

        Raises:
            KeyError: no pass has kept one with this name.
        """
        return self._kept[name]


class _Hidden:
    """Hides a leaf from autograd, which would otherwise make it an input of the graph."""

    __slots__ = ("leaf",)

    def __init__(self, leaf: Tensor) -> None:
        self.leaf = leaf


class _AddLaterGradient(torch.autograd.Function):
    """Identity whose backward adds the gradient that later passes have accumulated on the leaf, once."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, hidden: _Hidden) -> Tensor:
        ctx.hidden = hidden
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        leaf = ctx.hidden.leaf
        later, leaf.grad = leaf.grad, None
        return (gradient if later is None else gradient + later), None


class _ReachThrough(torch.autograd.Function):
    """The first argument, whose backward also reaches the second one, with a gradient of zeros."""

    @staticmethod
    def forward(ctx: Any, used: Tensor, aside: Tensor) -> Tensor:
        ctx.save_for_backward(aside)
        return used.view_as(used)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (aside,) = ctx.saved_tensors
        return gradient, torch.zeros_like(aside)
