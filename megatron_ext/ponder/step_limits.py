"""Limits on the steps of a trained model, for one forward or one decoder."""

from dataclasses import dataclass, replace
from enum import StrEnum

from megatron_ext.ponder.config import PonderConfig


class HaltingSignal(StrEnum):
    """What a decoder can halt by without having been trained to: a baseline for routers and gates.

    A token takes a further step while the signal is at least the threshold.
    """

    ENTROPY = "entropy"
    """Entropy in nats of the prediction of step 0; a token takes no steps or all."""
    CONFIDENCE = "confidence"
    """One minus the largest probability of step 0; a token takes no steps or all."""
    CONVERGENCE = "convergence"
    """How far the last thought moved from the one before, relative to its size; each token takes a step."""

    @property
    def reads_head(self) -> bool:
        """Whether the head runs on step 0 to find out."""
        return self is not HaltingSignal.CONVERGENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """Other numbers of steps than a model was trained with; None leaves the model's own.

    Attributes:
        num_steps: K. Below the model's own, a router gives the share of the steps beyond to the last one.
            Above it, the model repeats what it does in every step, more often than it was trained to; only
            where no weight belongs to a step of its own.
        threshold: tau, the tail mass, gate value or signal below which a token halts.
        signal: what is compared with the threshold in place of the model's own router; decoders of latent
            thoughts only. The shares of the steps that a router expects beyond go to the last step taken.
    """

    num_steps: int | None = None
    threshold: float | None = None
    signal: HaltingSignal | None = None

    def problem(self, own: PonderConfig) -> str | None:
        """Return why a model cannot run under these limits: what must hold, and what was found."""
        facts, trained, wanted = own.method.facts, own.num_latent_thoughts, self.num_steps
        if wanted is not None and wanted < 0:
            return f"steps must be at least 0, but are {wanted}"
        if wanted not in (None, trained) and own.multiply_embedding:
            return f"steps must be {trained}, because the first input is multiplied by them, but are {wanted}"
        if wanted is not None and wanted > trained and not facts.can_take_more_steps:
            return (
                f"steps of {own.method} must be at most the {trained} it was trained with, but are {wanted}"
            )
        if self.signal is not None and not facts.has_sweeps:
            return f"a signal must be for a method of latent thoughts, but the model is one of {own.method}"
        if self.threshold is not None and self.signal is None and not facts.halts:
            return f"a threshold must be for a method that halts, but the model is one of {own.method}"
        return None

    def apply(self, own: PonderConfig) -> PonderConfig:
        """Return the settings of a model under these limits."""
        problem = self.problem(own)
        assert problem is None, problem
        num_steps = own.num_latent_thoughts if self.num_steps is None else self.num_steps
        threshold = own.pruning_threshold if self.threshold is None else self.threshold
        # Where a signal decides, the router prunes nothing.
        threshold = threshold if self.signal is None else 0.0
        return replace(own, num_latent_thoughts=num_steps, pruning_threshold=threshold)


UNLIMITED = StepLimits()
