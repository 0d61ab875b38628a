"""Settings that change from step to step, a pure function of the configuration and the run's progress."""

from dataclasses import dataclass

from megatron_ext.model.micro_batch import ForwardSettings
from megatron_ext.ponder.passes import draw_jacobi_iterations, draw_latent_thoughts, scheduled_number
from megatron_ext.ponder.penalties import ramp
from megatron_ext.ponder.start import pondering_share
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
        pondering_share: a of a blended start; 1 is the method as it is.
        holds_decisions: router or gates learn nothing.
        measures_steps: also measure the loss of every step alone, and of one step more.
        gradient_passes: so many last passes have gradients; None: all.
        sweep_tolerance: sweeps end where one moves the thoughts of a micro-batch by at most this, relative to
            their size; None: J of them run.
        skips_pruned_rows: rows of slots that tokens do not take are not computed.
    """

    num_jacobi_iterations: int
    penalty_weight: float
    bottom_k_fraction: float | None = None
    freezes_backbone: bool = False
    prune: bool = False
    limits: StepLimits = UNLIMITED
    pondering_share: float = 1.0
    holds_decisions: bool = False
    measures_steps: bool = False
    gradient_passes: int | None = None
    sweep_tolerance: float | None = None
    skips_pruned_rows: bool = False

    @property
    def forward(self) -> ForwardSettings:
        """The part that the model needs."""
        return ForwardSettings(
            num_jacobi_iterations=self.num_jacobi_iterations,
            prune=self.prune,
            bottom_k_fraction=self.bottom_k_fraction,
            limits=self.limits,
            pondering_share=self.pondering_share,
            holds_decisions=self.holds_decisions,
            measures_steps=self.measures_steps,
            gradient_passes=self.gradient_passes,
            sweep_tolerance=self.sweep_tolerance,
            skips_pruned_rows=self.skips_pruned_rows,
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
    is_held = iteration - _first_pondering_iteration(config) < ponder.held_decisions_iterations
    return StepSettings(
        num_jacobi_iterations=_jacobi_iterations(config, iteration),
        penalty_weight=0.0 if is_held else weight,
        bottom_k_fraction=fraction,
        freezes_backbone=consumed_tokens < ponder.freeze_backbone_tokens,
        limits=_step_limits(config, iteration),
        pondering_share=share_of_thoughts(config, iteration),
        holds_decisions=is_held,
        gradient_passes=None if ponder.gradient_passes == "all" else ponder.gradient_passes,
        sweep_tolerance=ponder.sweep_tolerance,
        skips_pruned_rows=ponder.skip_pruned_rows,
    )


def share_of_thoughts(config: RunConfig, iteration: int) -> float:
    """Return a of the blended start after so many finished steps: 0 until it begins, 1 once it is over."""
    since = iteration - _first_pondering_iteration(config)
    return pondering_share(since, config.ponder.blended_start_iterations)


def _first_pondering_iteration(config: RunConfig) -> int:
    """Return where a schedule first gives tokens extra steps; before that the model trains without any."""
    return next((start for start, steps in config.ponder.thoughts_schedule or () if steps > 0), 0)


def _jacobi_iterations(config: RunConfig, iteration: int) -> int:
    ponder = config.ponder
    if ponder.random_jacobi_iterations is not None:
        return draw_jacobi_iterations(config.seed, iteration, *ponder.random_jacobi_iterations)
    if ponder.jacobi_schedule is not None:
        return scheduled_number(ponder.jacobi_schedule, iteration)
    return ponder.num_jacobi_iterations


def _step_limits(config: RunConfig, iteration: int) -> StepLimits:
    ponder = config.ponder
    if ponder.random_latent_thoughts is not None:
        low, high = ponder.random_latent_thoughts
        return StepLimits(num_steps=draw_latent_thoughts(config.seed, iteration, low, high))
    if ponder.thoughts_schedule is not None:
        return StepLimits(num_steps=scheduled_number(ponder.thoughts_schedule, iteration))
    return UNLIMITED
