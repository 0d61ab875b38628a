"""What one pondering method is asked to do: plain values, no torch."""

from dataclasses import dataclass
from enum import StrEnum


class Method(StrEnum):
    """The pondering methods, by the names used in configs and checkpoints."""

    VANILLA = "vanilla"
    LOOP = "loop"
    PAUSE = "pause"
    PONDERLM = "ponderlm"
    PONDERLM2 = "ponderlm2"
    ADAPONDERLM = "adaponderlm"
    PONDERLM3 = "ponderlm3"


class Penalty(StrEnum):
    """What the halting penalty of PonderLM-3 measures (definitions 2.5)."""

    EXPECTED_STEPS = "expected_steps"
    BOTTOM_K = "bottom_k"


@dataclass(frozen=True, slots=True, kw_only=True)
class PonderConfig:
    """Settings of a pondering method.

    Attributes:
        method: which method.
        num_latent_thoughts: K, extra steps per token, at least 0.
        max_jacobi_iterations: the largest J that will ever be asked for; sizes the statistics.
        scale_embeds: multiply embeddings by the method's factor c.
        interpolation: feed the softmax mixture of embeddings back instead of the hidden state.
        interpolation_topk: take the mixture over this many largest logits only; None for all.
        pruning_threshold: tau, the tail mass below which a step is pruned at inference.
        penalty: how the steps taken are penalised.
        bottom_k_fraction: q of the bottom_k penalty, in [0, 1].
    """

    method: Method
    num_latent_thoughts: int = 0
    max_jacobi_iterations: int = 0
    scale_embeds: bool = True
    interpolation: bool = False
    interpolation_topk: int | None = None
    pruning_threshold: float = 1e-4
    penalty: Penalty = Penalty.EXPECTED_STEPS
    bottom_k_fraction: float = 0.25

    @property
    def num_slots(self) -> int:
        """K + 1: the token itself and its latent thoughts."""
        return self.num_latent_thoughts + 1
