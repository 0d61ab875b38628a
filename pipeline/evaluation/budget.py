"""A budget of steps, and the threshold that spends it on recorded text. Imports no torch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.cost.flops import FlopsAccount
from pipeline.metrics.ponder_scalars import fractions, mean_steps_of
from pipeline.shared.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What tokens may cost on average: exactly one of the two.

    Attributes:
        mean_steps: extra steps per token.
        flops_share: of the decoding operations of taking all steps, in (0, 1].
    """

    mean_steps: float | None = None
    flops_share: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Read a budget as it is written: ``1.5`` steps per token, or ``60%`` of the operations.

        Raises:
            ValueError: it is neither.
        """
        is_share = text.endswith("%")
        try:
            number = float(text.removesuffix("%"))
        except ValueError:
            number = math.nan
        if is_share and 0 < number <= 100:
            return cls(flops_share=number / 100)
        if not is_share and 0 <= number < math.inf:
            return cls(mean_steps=number)
        raise ValueError(
            f"a budget must be a number of steps per token, such as 1.5, or a share of the operations of all "
            f"steps, such as 60%, but is {text!r}"
        )

    def __str__(self) -> str:
        if self.mean_steps is not None:
            return f"{self.mean_steps:g}"
        assert self.flops_share is not None, "a budget is one of the two"
        return f"{100 * self.flops_share:g}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """The cost of tokens that took some steps.

    Attributes:
        mean_steps: extra steps per token.
        flops_per_token: of cached decoding.
        flops_share: of those of taking all steps of the trained model.
    """

    mean_steps: float
    flops_per_token: float
    flops_share: float

    def fits(self, budget: Budget) -> bool:
        """Whether it is within a budget, to rounding."""
        allowed = budget.flops_share if budget.mean_steps is None else budget.mean_steps
        spent = self.flops_share if budget.mean_steps is None else self.mean_steps
        assert allowed is not None, "a budget is one of the two"
        return spent <= allowed * (1 + 1e-9)


def spending(steps_count: Sequence[float], account: FlopsAccount, full: FlopsAccount) -> Spending:
    """Return the cost of tokens by how many of them took 0..K steps.

    Args:
        steps_count: [K + 1].
        account: of the model under its limits.
        full: of the trained model, which takes all its steps.
    """
    mean_steps = mean_steps_of(steps_count)
    flops = account.inference_per_token(mean_steps, shares=fractions(steps_count))
    # A signal is not asked by a decoder that takes all steps anyway.
    whole = full.inference_per_token(full.num_latent_thoughts)
    return Spending(mean_steps=mean_steps, flops_per_token=flops, flops_share=flops / whole)


class RecordedScores:
    """What the steps of many tokens are taken by: a token takes those whose score reaches the threshold."""

    def __init__(self, scores: NDArray[np.floating]) -> None:
        """Sort the scores of each step.

        Args:
            scores: [N, K], at least 0, non-increasing along the steps.
        """
        self.num_tokens, self.num_steps = scores.shape
        self._sorted = np.sort(scores.astype(np.float64), axis=0)

    def steps_count(self, threshold: float) -> list[int]:
        """Return how many tokens take 0..K steps at a threshold."""
        below = [int(np.searchsorted(of_step, threshold, side="left")) for of_step in self._sorted.T]
        taken = [self.num_tokens, *(self.num_tokens - count for count in below), 0]
        return [more - fewer for more, fewer in pairwise(taken)]

    def smallest_threshold(self, fits: Callable[[Sequence[int]], bool]) -> float | None:
        """Return the smallest threshold at which the steps fit, None where not even no steps do.

        It lies between two scores, so that rounding does not decide about the token next to it.

        Args:
            fits: whether so many tokens may take 0..K steps; True for fewer steps wherever it is for more.
        """
        values = np.unique(self._sorted)
        # After `low` values are below the threshold the steps fit; found by bisection.
        low, high = 0, len(values)
        if not fits(self.steps_count(_between(values, high))):
            return None
        while low < high:
            middle = (low + high) // 2
            if fits(self.steps_count(_between(values, middle))):
                high = middle
            else:
                low = middle + 1
        return _between(values, high)


def _between(values: NDArray[np.float64], num_below: int) -> float:
    """Return a threshold that so many of the distinct, rising values are below."""
    if num_below == 0:
        return 0.0
    last = float(values[num_below - 1])
    if math.isinf(last):
        return math.inf
    # Scores are float32, and so is the threshold where they are compared with it.
    above = float(np.nextafter(np.float32(last), np.float32(math.inf)))
    if num_below == len(values) or math.isinf(values[num_below]):
        return above
    return max(above, float(np.float32((last + float(values[num_below])) / 2)))


def least_budget_error(budget: Budget, least: Spending) -> DataError:
    """Return the error of a budget that not even the fewest steps meet."""
    return DataError(
        f"--budget must be at least {least.mean_steps:g} steps, or {100 * least.flops_share:.3g}% of the "
        f"operations, which tokens take at every threshold, but is {budget}; raise it"
    )
