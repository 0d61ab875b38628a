"""The held-out loss when tokens may take fewer steps, and when they halt at other thresholds."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from megatron_ext.methods.base import Column
from megatron_ext.model.micro_batch import ModelOutput, TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Reading
from megatron_ext.ponder.step_limits import StepLimits
from pipeline.cost.flops import FlopsAccount
from pipeline.metrics.ponder_scalars import fractions, mean_steps_of
from pipeline.metrics.records import LossPoint
from pipeline.step.evaluate import Evaluation, evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """The limits at which a model is evaluated.

    Attributes:
        over_steps: every number of steps from 0 to K, by the training forward (soft mask).
        taus: thresholds, by hard pruning.
        num_jacobi_iterations: J.
        pondering_share: a of a blended start; 1 is the method as it is.
    """

    over_steps: bool
    taus: Sequence[float]
    num_jacobi_iterations: int
    pondering_share: float = 1.0

    def limits(self, num_latent_thoughts: int) -> list[StepLimits]:
        """Return the limits for a model of K latent thoughts, by rising steps, then the thresholds."""
        steps = range(num_latent_thoughts + 1) if self.over_steps else ()
        return [
            *(StepLimits(num_steps=number) for number in steps),
            *(StepLimits(threshold=tau) for tau in self.taus),
        ]


def points_under_limits(
    module: PonderModel,
    batches: Iterable[list[TokenBatch]],
    settings: LimitSettings,
    *,
    groups: ParallelGroups,
    flops: FlopsAccount,
    unlimited: Evaluation,
    is_cut_short: Callable[[], bool] | None = None,
) -> tuple[LossPoint, ...] | None:
    """Evaluate a model under every limit; all ranks call it together.

    Args:
        module, batches, groups, is_cut_short: see :func:`pipeline.step.evaluate.evaluate`.
        settings: which limits.
        flops: cost account of the model.
        unlimited: the model's own evaluation, which is not repeated.
    Returns:
        The points in the order of the limits; None where an evaluation was cut short.
    """
    points = []
    for limits in settings.limits(flops.num_latent_thoughts):
        found: Evaluation | None = unlimited
        if limits.num_steps != flops.num_latent_thoughts:
            found = evaluate_under(
                limits,
                module,
                batches,
                num_jacobi_iterations=settings.num_jacobi_iterations,
                pondering_share=settings.pondering_share,
                groups=groups,
                is_cut_short=is_cut_short,
            )
        if found is None:
            return None
        points.append(loss_point(limits, found.loss, counted_steps(limits, module, found), flops))
    return tuple(points)


def evaluate_under(
    limits: StepLimits,
    module: PonderModel,
    batches: Iterable[list[TokenBatch]],
    *,
    num_jacobi_iterations: int,
    groups: ParallelGroups,
    pondering_share: float = 1.0,
    observe: Callable[[TokenBatch, ModelOutput], None] | None = None,
    is_cut_short: Callable[[], bool] | None = None,
) -> Evaluation | None:
    """Evaluate a model under limits; a threshold prunes for good, as decoding does.

    Args:
        limits: on the steps, without a signal.
        module, batches, num_jacobi_iterations, groups, pondering_share, observe, is_cut_short: see
            :func:`pipeline.step.evaluate.evaluate`.
    """
    return evaluate(
        module,
        batches,
        num_jacobi_iterations=num_jacobi_iterations,
        groups=groups,
        prune=limits.threshold is not None,
        limits=limits,
        observe=observe,
        pondering_share=pondering_share,
        is_cut_short=is_cut_short,
    )


def counted_steps(limits: StepLimits, module: PonderModel, found: Evaluation) -> Sequence[float] | None:
    """Return how many tokens took 0..K steps in an evaluation under limits; None where all take K.

    A mixture reads all steps, under a hard mask too, which hides keys alone: its loss is that of taking them
    all, whatever pruning would leave out.
    """
    is_weighted = limits.threshold is None and module.ponder.column is Column.LOG_WEIGHT
    ends_early = module.ponder.prunes_in_training and module.ponder.config.reading is Reading.LAST_STEP
    return None if is_weighted and not ends_early else found.sums.get("steps_count")


def loss_point(
    limits: StepLimits, loss: float, steps_count: Sequence[float] | None, flops: FlopsAccount
) -> LossPoint:
    """Return a loss under limits together with the cost of decoding there.

    Args:
        limits: on the steps.
        loss: nats per labelled token.
        steps_count: tokens that took 0..K steps; None where all take K.
        flops: cost account of the model.
    """
    if limits.num_steps is not None:
        flops = flops.limited_to(limits.num_steps)
    mean_steps, shares = float(flops.num_latent_thoughts), None
    if steps_count is not None:
        mean_steps, shares = mean_steps_of(steps_count), fractions(steps_count)
    return LossPoint(
        step_limit=limits.num_steps,
        pruning_threshold=limits.threshold,
        signal=limits.signal,
        loss=loss,
        mean_steps=mean_steps,
        flops_per_token=flops.inference_per_token(mean_steps, shares=shares),
    )
