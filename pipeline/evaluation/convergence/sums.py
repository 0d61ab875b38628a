"""Squared changes of latent thoughts by sweep and position.

S = tokens, K = latent thoughts, B = rows, H = hidden size, P = positions, J = sweeps.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.ponder.passes import PassPlan

# The name under which forwards show the thoughts that a pass hands on.
AFTER_PASS = "thoughts/after_pass_"


class ResidualSums:
    """Sums over batches; observes their forwards."""

    def __init__(self, plan: PassPlan, num_positions: int) -> None:
        """Start empty.

        Args:
            plan: of the forwards.
            num_positions: P.
        """
        self._plan = plan
        self._change = torch.zeros(plan.num_sweeps, num_positions, dtype=torch.float64)
        self._norm = torch.zeros_like(self._change)
        self._batch: TokenBatch | None = None
        self._before: Tensor | None = None

    def begin(self, batch: TokenBatch) -> None:
        """Start with a batch, on the host."""
        self._batch, self._before = batch, None

    def __call__(self, name: str, value: Tensor) -> None:
        """Take what a forward shows: thoughts, [S, K, B, H]."""
        if not name.startswith(AFTER_PASS):
            return
        sweep = self._plan.sweep_of(int(name.removeprefix(AFTER_PASS)))
        thoughts = value.detach().double().cpu()
        if sweep is not None:
            assert self._before is not None, "a sweep changes the thoughts of the pass before it"
            self._add(sweep, thoughts, self._before)
        self._before = thoughts

    def residuals(self) -> list[float]:
        """Return the residual of each sweep over all tokens."""
        return _ratios(self._change.sum(dim=1), self._norm.sum(dim=1))

    def residuals_by_position(self) -> list[list[float]]:
        """Return the residual of each sweep at each position."""
        return [_ratios(*sums) for sums in zip(self._change, self._norm, strict=True)]

    def _add(self, sweep: int, new: Tensor, old: Tensor) -> None:
        assert self._batch is not None, "a batch has begun"
        # [S, K, B, H] -> [B, S]
        change, norm = ((part.square()).sum(dim=(1, 3)).T for part in (new - old, old))
        is_real = self._batch.is_real
        positions = self._batch.position_ids[is_real]
        self._change[sweep].index_add_(0, positions, change[is_real])
        self._norm[sweep].index_add_(0, positions, norm[is_real])


def _ratios(change: Tensor, norm: Tensor) -> list[float]:
    pairs: Sequence[tuple[float, float]] = list(zip(change.tolist(), norm.tolist(), strict=True))
    return [math.sqrt(one / other) if other > 0 else 0.0 for one, other in pairs]
