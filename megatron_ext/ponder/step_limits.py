"""Limits on the steps of a trained model, for one forward or one decoder."""

from dataclasses import dataclass, replace

from megatron_ext.ponder.config import PonderConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """Fewer steps than a model was trained with, or another threshold; None leaves the model's own.

    Attributes:
        num_steps: K, at most the model's own. A router gives the share of the steps beyond to the last one.
        threshold: tau, the tail mass or gate value below which a token halts.
    """

    num_steps: int | None = None
    threshold: float | None = None

    def apply(self, own: PonderConfig) -> PonderConfig:
        """Return the settings of a model under these limits."""
        num_steps = own.num_latent_thoughts if self.num_steps is None else self.num_steps
        assert 0 <= num_steps <= own.num_latent_thoughts, f"{num_steps} of {own.num_latent_thoughts} steps"
        is_full = num_steps == own.num_latent_thoughts
        assert is_full or not own.multiply_embedding, "the first input is a multiple by K of the embedding"
        threshold = own.pruning_threshold if self.threshold is None else self.threshold
        return replace(own, num_latent_thoughts=num_steps, pruning_threshold=threshold)


UNLIMITED = StepLimits()
