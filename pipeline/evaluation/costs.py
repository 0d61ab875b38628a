"""The steps that texts took, summed by task."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.cost.flops import FlopsAccount


@dataclass(frozen=True, slots=True, kw_only=True)
class RealizedCost:
    """The cost of the tokens of a task.

    Attributes:
        num_tokens: that went through the layers.
        num_steps: extra steps that they took together.
    """

    num_tokens: int = 0
    num_steps: int = 0

    def __add__(self, other: "RealizedCost") -> "RealizedCost":
        return RealizedCost(
            num_tokens=self.num_tokens + other.num_tokens, num_steps=self.num_steps + other.num_steps
        )

    @property
    def mean_steps(self) -> float:
        """Steps per token; 0 where there was none."""
        return self.num_steps / max(self.num_tokens, 1)

    def flops_per_token(self, account: FlopsAccount) -> float:
        """Operations per token at the mean number of steps."""
        return account.inference_per_token(self.mean_steps)

    def total_flops(self, account: FlopsAccount) -> float:
        """Operations of all tokens."""
        return self.num_tokens * self.flops_per_token(account)


def add_costs(
    costs: Mapping[str, RealizedCost], more: Iterable[tuple[str, RealizedCost]]
) -> dict[str, RealizedCost]:
    """Add costs of texts to those of their tasks."""
    total = dict(costs)
    for task, cost in more:
        total[task] = total.get(task, RealizedCost()) + cost
    return total
