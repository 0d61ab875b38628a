"""Detect that halting has collapsed: all tokens take the same number of steps, or steps weigh nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from pipeline.metrics.ponder_scalars import fractions

# Share of the tokens that take the same number of steps in a collapse.
COLLAPSED_FRACTION = 0.999
# Mean tail mass below which a step is closed: its key and its share of what is read hardly count, so that it
# hardly learns.
CLOSED_TAIL_MASS = 0.05
# A collapse that lasts is warned about again after so many times the patience.
REPEATED_AFTER = 50


class Collapse(StrEnum):
    """The kinds of collapse."""

    ALWAYS_FIRST = "always_first"
    NEVER_EARLY = "never_early"
    ROUTER_CLOSED = "router_closed"


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
    Collapse.ROUTER_CLOSED: (
        "The router has closed: in the last {patience} logging intervals the mean tail mass of step {steps} "
        "was below {closed:g}, so this step hardly counts and hardly learns. Untrained steps lose to step 0: "
        "add the loss of each step (`ponder.step_loss_weight`), start blended "
        "(`ponder.blended_start_iterations`), hold the router longer "
        "(`ponder.held_decisions_iterations`), or lower `ponder.penalty_weight` (now {weight:g}); then start "
        "again, because a closed router does not open."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CollapseWarning:
    """A collapse that has lasted, and what to do about it."""

    kind: Collapse
    advice: str


class CollapseAlarm:
    """Warn about each kind of collapse that lasts for ``patience`` consecutive logging intervals.

    A kind is warned about once, and again only after it has lasted for 50 times as long.
    """

    def __init__(self, patience: int, *, trains_each_step: bool = False) -> None:
        """Take what is watched.

        Args:
            patience: intervals to wait, at least 1.
            trains_each_step: each step has a loss of its own, and learns however little of it is read: a low
                tail mass is then no collapse.
        """
        if patience < 1:
            raise ValueError(f"`metrics.collapse_patience` must be at least 1, but is {patience}")
        self._patience = patience
        self._watches_tail_mass = not trains_each_step
        self._current: Collapse | None = None
        self._num_intervals = 0
        # Intervals until each kind is warned about again.
        self._silent: dict[Collapse, int] = {}

    def observe(
        self,
        steps_count: Sequence[float],
        *,
        penalty_weight: float,
        tail_mass: Sequence[float] = (),
    ) -> CollapseWarning | None:
        """Record one interval and return the warning that is due, if any.

        Args:
            steps_count: tokens that took exactly 0..K steps.
            penalty_weight: the current weight of the penalty. While it is 0 nothing makes tokens halt, and
                taking every step is not a collapse.
            tail_mass: mean tail mass of steps 0..K; empty without a router.
        """
        found = _collapse_of(steps_count, penalty_weight, tail_mass if self._watches_tail_mass else ())
        self._num_intervals = self._num_intervals + 1 if found == self._current else 1
        self._current = found
        self._silent = {kind: left - 1 for kind, left in self._silent.items() if left > 1}
        if found is None or found in self._silent or self._num_intervals < self._patience:
            return None
        self._silent[found] = REPEATED_AFTER * self._patience
        advice = ADVICE[found].format(
            patience=self._patience,
            weight=penalty_weight,
            steps=len(steps_count) - 1,
            closed=CLOSED_TAIL_MASS,
        )
        return CollapseWarning(kind=found, advice=advice)


def _collapse_of(
    steps_count: Sequence[float], penalty_weight: float, tail_mass: Sequence[float]
) -> Collapse | None:
    if len(steps_count) < 2 or sum(steps_count) == 0:
        return None
    halted = fractions(steps_count)
    if halted[0] >= COLLAPSED_FRACTION:
        return Collapse.ALWAYS_FIRST
    if tail_mass and tail_mass[-1] < CLOSED_TAIL_MASS:
        return Collapse.ROUTER_CLOSED
    if halted[-1] >= COLLAPSED_FRACTION and penalty_weight > 0:
        return Collapse.NEVER_EARLY
    return None
