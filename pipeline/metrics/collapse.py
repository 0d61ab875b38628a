"""Detect that halting has collapsed: all tokens take the same number of steps."""

from collections.abc import Sequence
from enum import StrEnum

from pipeline.metrics.ponder_scalars import fractions

# Share of the tokens that take the same number of steps in a collapse.
COLLAPSED_FRACTION = 0.999


class Collapse(StrEnum):
    """The two kinds of collapse."""

    ALWAYS_FIRST = "always_first"
    NEVER_EARLY = "never_early"


ADVICE = {
    Collapse.ALWAYS_FIRST: (
        "Halting has collapsed: in the last {patience} logging intervals all tokens halted at step 0, so no "
        "token ponders any more. Lower `ponder.penalty_weight` (now {weight:g}) or the "
        "`ponder.bottom_k_fraction` of a bottom_k penalty, stretch `ponder.penalty_ramp`, or lower "
        "`optimizer.lr`; then resume from a checkpoint made before the collapse."
    ),
    Collapse.NEVER_EARLY: (
        "Halting has collapsed: in the last {patience} logging intervals every token took all {steps} steps, "
        "so pondering saves nothing. Raise `ponder.penalty_weight` (now {weight:g}) or the "
        "`ponder.bottom_k_fraction` of a bottom_k penalty, or let `ponder.penalty_ramp` begin and end "
        "earlier, before the router or the gates saturate; a lower `optimizer.lr` helps as well."
    ),
}


class CollapseAlarm:
    """Warn once about each kind of collapse that lasts for ``patience`` consecutive logging intervals."""

    def __init__(self, patience: int) -> None:
        """Take the number of intervals to wait, at least 1."""
        if patience < 1:
            raise ValueError(f"`metrics.collapse_patience` must be at least 1, but is {patience}")
        self._patience = patience
        self._current: Collapse | None = None
        self._num_intervals = 0
        self._warned: set[Collapse] = set()

    def observe(self, steps_count: Sequence[float], *, penalty_weight: float) -> str | None:
        """Record one interval and return the warning that is due, if any.

        Args:
            steps_count: tokens that took exactly 0..K steps.
            penalty_weight: the current weight of the penalty. While it is 0 nothing makes tokens halt, and
                taking every step is not a collapse.
        """
        found = _collapse_of(steps_count, penalty_weight)
        self._num_intervals = self._num_intervals + 1 if found == self._current else 1
        self._current = found
        if found is None or found in self._warned or self._num_intervals < self._patience:
            return None
        self._warned.add(found)
        return ADVICE[found].format(
            patience=self._patience, weight=penalty_weight, steps=len(steps_count) - 1
        )


def _collapse_of(steps_count: Sequence[float], penalty_weight: float) -> Collapse | None:
    if len(steps_count) < 2 or sum(steps_count) == 0:
        return None
    halted = fractions(steps_count)
    if halted[0] >= COLLAPSED_FRACTION:
        return Collapse.ALWAYS_FIRST
    if halted[-1] >= COLLAPSED_FRACTION and penalty_weight > 0:
        return Collapse.NEVER_EARLY
    return None
