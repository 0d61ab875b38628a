"""The schedule of passes: build-up, refinement sweeps, final pass (definitions 2.3), or plain iterations.

One training forward of a latent-thought method is ``P = K + J + 1`` passes over the same layers. Pass p sees
``min(p, K) + 1`` slots per token.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class PassPlan:
    """How many slots each pass of one forward sees, and which passes are refinement sweeps.

    Attributes:
        slots: slots per token, pass by pass; its length is P.
        first_sweep: index of the first refinement sweep.
        num_sweeps: J.
        gradient_passes: so many last passes have gradients, and all earlier ones are constants to them; None:
            all passes have.
    """

    slots: tuple[int, ...]
    first_sweep: int = 0
    num_sweeps: int = 0
    gradient_passes: int | None = None

    @property
    def num_passes(self) -> int:
        """P."""
        return len(self.slots)

    @property
    def rows_per_token(self) -> int:
        """Rows that one token costs over all passes of a training forward."""
        return sum(self.slots)

    def rows_handed(self, index: int) -> int:
        """Rows per token that the end of pass `index` hands to the next one; 0 for the final pass.

        Those are its latent thoughts, or the one row that runs again; each may be a mixture of embeddings.
        """
        return 0 if self.is_final(index) else max(self.slots[index + 1] - 1, 1)

    def sweep_of(self, index: int) -> int | None:
        """Number of the refinement sweep that pass `index` is, or None for any other pass."""
        sweep = index - self.first_sweep
        return sweep if 0 <= sweep < self.num_sweeps else None

    def phase(self, index: int) -> Literal["build_up", "sweep", "final"]:
        """What pass `index` is for; plain iterations build up what the final pass reads."""
        if self.is_final(index):
            return "final"
        return "build_up" if self.sweep_of(index) is None else "sweep"

    def is_final(self, index: int) -> bool:
        """Whether pass `index` is the one whose output is read."""
        return index == self.num_passes - 1

    @property
    def first_with_gradient(self) -> int:
        """Index of the first pass that has gradients."""
        return 0 if self.gradient_passes is None else max(self.num_passes - self.gradient_passes, 0)

    def has_gradient(self, index: int) -> bool:
        """Whether backward goes through pass `index`."""
        return index >= self.first_with_gradient

    @property
    def gradient_rows_per_token(self) -> int:
        """Rows that one token costs over the passes that have gradients."""
        return sum(self.slots[self.first_with_gradient :])

    def truncated(self, gradient_passes: int | None) -> "PassPlan":
        """Return the same passes, of which only so many last ones have gradients; None: all."""
        return replace(self, gradient_passes=gradient_passes)

    def ended_after(self, index: int) -> "PassPlan":
        """Return the plan of a forward whose sweeps have converged after pass `index`.

        The remaining sweeps are left out, but for those among the `gradient_passes` last passes, where that
        is a number: through them the thoughts learn.

        Args:
            index: of a sweep.
        """
        sweep = self.sweep_of(index)
        assert sweep is not None, "only sweeps converge"
        remaining = 0 if self.gradient_passes is None else self.gradient_passes - 1
        left_out = max(self.num_sweeps - (sweep + 1 + remaining), 0)
        return replace(
            self,
            slots=self.slots[: self.num_passes - left_out],
            num_sweeps=self.num_sweeps - left_out,
        )


# (K, J) -> the plan of one training forward.
PlanBuilder = Callable[[int, int], PassPlan]


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


def iteration_plan(num_latent_thoughts: int, num_jacobi_iterations: int) -> PassPlan:
    """Build the plan of a method that runs every token K more times, one row each; J has no influence."""
    del num_jacobi_iterations
    return PassPlan(slots=(1,) * (num_latent_thoughts + 1))


def pause_plan(num_latent_thoughts: int, num_jacobi_iterations: int) -> PassPlan:
    """Build the plan of one pass with K + 1 rows per token; J has no influence."""
    del num_jacobi_iterations
    return PassPlan(slots=(num_latent_thoughts + 1,))


def single_pass_plan(num_latent_thoughts: int, num_jacobi_iterations: int) -> PassPlan:
    """Build the plan of an ordinary forward: one pass, one row per token, whatever K and J are."""
    del num_latent_thoughts, num_jacobi_iterations
    return PassPlan(slots=(1,))


def mean_over_sweeps(of_sweeps: Callable[[int], float], num_jacobi_iterations: float) -> float:
    """Evaluate a quantity of the pass plan at a mean J.

    Every further sweep is the same pass once more, so whatever sums over passes is linear in J, and the mean
    over drawn J is the value at the mean J: it lies on the line through the two whole J around it.

    Args:
        of_sweeps: J -> the quantity.
        num_jacobi_iterations: J, or its mean, at least 0.
    """
    whole = math.floor(num_jacobi_iterations)
    value, share = of_sweeps(whole), num_jacobi_iterations - whole
    return value if share == 0 else value + share * (of_sweeps(whole + 1) - value)


def scheduled_number(schedule: Sequence[tuple[int, int]], step: int) -> int:
    """Return J or K of a piecewise constant schedule.

    Args:
        schedule: pairs (first step, number) in rising order, the first at step 0.
        step: finished steps.
    """
    return max((first, number) for first, number in schedule if first <= step)[1]


def draw_jacobi_iterations(seed: int, step: int, low: int, high: int) -> int:
    """Draw J uniformly from low..high, both included, as a pure function of (seed, step).

    Every rank computes the same number without talking to any other, and a resumed run repeats it.
    """
    return _draw("jacobi-iterations", seed, step, low, high)


def draw_latent_thoughts(seed: int, step: int, low: int, high: int) -> int:
    """Draw K as J is drawn, and independently of it."""
    return _draw("latent-thoughts", seed, step, low, high)


def _draw(name: str, seed: int, step: int, low: int, high: int) -> int:
    digest = hashlib.sha256(f"{name}:{seed}:{step}".encode()).digest()
    return low + int.from_bytes(digest[:8], "big") % (high - low + 1)
