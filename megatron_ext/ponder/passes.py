"""The schedule of passes: build-up, refinement sweeps, final pass (definitions 2.3), or plain iterations.

One training forward of a latent-thought method is ``P = K + J + 1`` passes over the same layers. Pass p sees
``min(p, K) + 1`` slots per token.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PassPlan:
    """How many slots each pass of one forward sees, and which passes are refinement sweeps.

    Attributes:
        slots: slots per token, pass by pass; its length is P.
        first_sweep: index of the first refinement sweep.
        num_sweeps: J.
    """

    slots: tuple[int, ...]
    first_sweep: int = 0
    num_sweeps: int = 0

    @property
    def num_passes(self) -> int:
        """P."""
        return len(self.slots)

    @property
    def rows_per_token(self) -> int:
        """Rows that one token costs over all passes of a training forward."""
        return sum(self.slots)

    def sweep_of(self, index: int) -> int | None:
        """Number of the refinement sweep that pass `index` is, or None for any other pass."""
        sweep = index - self.first_sweep
        return sweep if 0 <= sweep < self.num_sweeps else None

    def is_final(self, index: int) -> bool:
        """Whether pass `index` is the one whose output is read."""
        return index == self.num_passes - 1


def jacobi_plan(num_latent_thoughts: int, num_jacobi_iterations: int) -> PassPlan:
    """Build the plan of a latent-thought method.

    Args:
        num_latent_thoughts: K; 0 gives one ordinary pass, whatever J is.
        num_jacobi_iterations: J, refinement sweeps.
    """
    if num_latent_thoughts == 0:
        return PassPlan(slots=(1,))
    build_up = tuple(range(1, num_latent_thoughts + 1))
    full = (num_latent_thoughts + 1,) * (num_jacobi_iterations + 1)
    return PassPlan(slots=build_up + full, first_sweep=num_latent_thoughts, num_sweeps=num_jacobi_iterations)


def iteration_plan(num_iterations: int) -> PassPlan:
    """Build the plan of a method that runs every token `num_iterations` more times, one row each."""
    return PassPlan(slots=(1,) * (num_iterations + 1))


def scheduled_jacobi_iterations(schedule: Sequence[tuple[int, int]], step: int) -> int:
    """J of a piecewise constant schedule.

    Args:
        schedule: pairs (first step, J) in rising order, the first at step 0.
        step: finished steps.
    """
    return max((first, sweeps) for first, sweeps in schedule if first <= step)[1]


def draw_jacobi_iterations(seed: int, step: int, low: int, high: int) -> int:
    """Draw J uniformly from low..high, both included, as a pure function of (seed, step).

    Every rank computes the same number without talking to any other, and a resumed run repeats it.
    """
    digest = hashlib.sha256(f"jacobi-iterations:{seed}:{step}".encode()).digest()
    return low + int.from_bytes(digest[:8], "big") % (high - low + 1)
