"""Compare two trainings of the same model, step by step, with the differences that rounding explains."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.config.optimizer_section import OptimizerName

# Rounding differences feed back into the weights. Measured on small models they do not grow for twenty steps
# at usual learning rates, and by up to a tenth per step at rates near divergence.
GROWTH_PER_STEP = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Measurements of one training step.

    Attributes:
        loss: mean cross-entropy, nats per labelled token.
        grad_norm: norm of all gradients before clipping; NaN where the update was skipped.
    """

    loss: float
    grad_norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """The largest relative differences that rounding explains.

    Attributes:
        loss: of the loss, a mean over many tokens, in which rounding errors cancel.
        grad_norm: of the gradient norm, whose squares are all positive, so that a missing share of a gradient
            shows.
    """

    loss: float
    grad_norm: float

    def at(self, step: int) -> "Band":
        """Return the band of a step, counted from 1."""
        grown = GROWTH_PER_STEP ** (step - 1)
        return Band(loss=self.loss * grown, grad_norm=self.grad_norm * grown)


# A layout changes the order of sums, whose errors are some tens of units of rounding: 2**-24 = 6e-8 in fp32.
# With bf16 weights and hidden states one unit is 2**-9 = 2e-3; sums over tokens and optimizer are in fp32.
# Measured on the first step of small models of all methods: 1e-8 and 1e-7 in fp32, 2e-6 and 4e-4 in bf16.
FIRST_STEP = {"fp32": Band(loss=2e-6, grad_norm=2e-6), "bf16": Band(loss=5e-4, grad_norm=5e-3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepParity:
    """One step on one process and on a layout.

    Attributes:
        step: counted from 1.
        one_process, on_layout: what was measured.
        loss_difference, grad_norm_difference: relative to one process.
        band: the largest differences that pass.
    """

    step: int
    one_process: Measured
    on_layout: Measured
    loss_difference: float
    grad_norm_difference: float
    band: Band

    @property
    def share_of_band(self) -> float:
        """The larger difference over its band; at most 1 passes, NaN does not."""
        shares = (self.loss_difference / self.band.loss, self.grad_norm_difference / self.band.grad_norm)
        # NaN is neither larger nor smaller; it must not be lost in max().
        return sum(shares) if any(share != share for share in shares) else max(shares)

    @property
    def passes(self) -> bool:
        """Whether both differences are inside the band."""
        return self.share_of_band <= 1


def compare(
    one_process: Sequence[Measured],
    on_layout: Sequence[Measured],
    *,
    precision: Literal["fp32", "bf16"],
    optimizer: OptimizerName = "adamw",
) -> list[StepParity]:
    """Compare two trainings step by step.

    Args:
        one_process: the reference.
        on_layout: as many steps.
        precision: decides the band.
        optimizer: Muon computes updates in bf16 whatever the precision, so that its band is that of bf16 from
            the second step on.
    """
    after_update = "bf16" if optimizer == "muon" else precision
    return [
        StepParity(
            step=step,
            one_process=expected,
            on_layout=found,
            loss_difference=_relative(found.loss, expected.loss),
            grad_norm_difference=_relative(found.grad_norm, expected.grad_norm),
            band=FIRST_STEP[precision if step == 1 else after_update].at(step),
        )
        for step, (expected, found) in enumerate(zip(one_process, on_layout, strict=True), start=1)
    ]


def _relative(found: float, expected: float) -> float:
    if found == expected:
        return 0.0
    return abs(found - expected) / abs(expected) if expected else float("inf")
