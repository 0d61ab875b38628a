"""Settings that change from step to step, a pure function of the configuration and the run's progress."""

from dataclasses import dataclass

from megatron_ext.model.micro_batch import ForwardSettings
from megatron_ext.ponder.passes import draw_jacobi_iterations, scheduled_jacobi_iterations
from megatron_ext.ponder.penalties import ramp
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits
from pipeline.config.schema import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSettings:
    """Settings of one step.

    Attributes:
        num_jacobi_iterations: J.
        penalty_weight: lambda.
        bottom_k_fraction: q of a bottom-k penalty; None takes the configured one.
        freezes_backbone: train only the method's own weights.
        prune: mask pruned slots out, as inference does.
        limits: on the steps that tokens take.
    """

    num_jacobi_iterations: int
    penalty_weight: float
    bottom_k_fraction: float | None = None
    freezes_backbone: bool = False
    prune: bool = False
    limits: StepLimits = UNLIMITED

    @property
    def forward(self) -> ForwardSettings:
        """The part that the model needs."""
        return ForwardSettings(
            num_jacobi_iterations=self.num_jacobi_iterations,
            prune=self.prune,
            bottom_k_fraction=self.bottom_k_fraction,
            limits=self.limits,
        )


def step_settings(config: RunConfig, *, iteration: int, consumed_tokens: int) -> StepSettings:
    """Return the settings of the next step.

    Args:
        config: the run.
        iteration: finished steps.
        consumed_tokens: tokens they were trained on.
    """
    ponder = config.ponder
    risen = ramp(iteration, *ponder.penalty_ramp)
    start, end = ponder.penalty_start_weight, ponder.penalty_weight
    weight, fraction = start + (end - start) * risen, ponder.bottom_k_fraction
    if ponder.method.facts.ramps_fraction:
        # Here the fraction rises instead, with the full weight (definitions 3.2).
        has_begun = iteration >= ponder.penalty_ramp[0]
        weight, fraction = ponder.penalty_weight * has_begun, ponder.bottom_k_fraction * risen
    return StepSettings(
        num_jacobi_iterations=_jacobi_iterations(config, iteration),
        penalty_weight=weight,
        bottom_k_fraction=fraction,
        freezes_backbone=consumed_tokens < ponder.freeze_backbone_tokens,
    )


def _jacobi_iterations(config: RunConfig, iteration: int) -> int:
    ponder = config.ponder
    if ponder.random_jacobi_iterations is not None:
        return draw_jacobi_iterations(config.seed, iteration, *ponder.random_jacobi_iterations)
    if ponder.jacobi_schedule is not None:
        return scheduled_jacobi_iterations(ponder.jacobi_schedule, iteration)
    return ponder.num_jacobi_iterations
