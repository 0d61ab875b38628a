"""The held-out loss when tokens may take fewer steps, and when they halt at other thresholds."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

from megatron_ext.limits import limited
from megatron_ext.methods.base import Column
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from pipeline.cost.flops import FlopsAccount
from pipeline.metrics.ponder_scalars import mean_steps_of
from pipeline.metrics.records import SweepPoint
from pipeline.step.evaluate import Evaluation, evaluate


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSettings:
    """What is tried.

    Attributes:
        over_steps: every number of steps from 0 to K, by the training forward (soft mask).
        taus: thresholds, by hard pruning.
        num_jacobi_iterations: J.
    """

    over_steps: bool
    taus: Sequence[float]
    num_jacobi_iterations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit:
    """One point that is to be measured, and the model at it."""

    kind: Literal["steps", "tau"]
    value: float
    num_steps: int
    model: AbstractContextManager[None]


def sweep(
    module: PonderModel,
    batches: Iterable[list[TokenBatch]],
    settings: SweepSettings,
    *,
    groups: ParallelGroups,
    flops: FlopsAccount,
    whole: Evaluation,
    is_cut_short: Callable[[], bool] | None = None,
) -> tuple[SweepPoint, ...] | None:
    """Evaluate a model at every limit; all ranks call it together.

    Args:
        module, batches, groups, is_cut_short: see :func:`pipeline.step.evaluate.evaluate`.
        settings: which limits.
        flops: cost account of the model.
        whole: the model's own evaluation, which is not done again.
    Returns:
        The points, by rising steps and then in the order of the thresholds; None where it was cut short.
    """
    points = []
    for limit in _limits(module, settings):
        found: Evaluation | None = whole
        if limit.kind == "tau" or limit.num_steps < flops.num_latent_thoughts:
            with limit.model:
                found = evaluate(
                    module,
                    batches,
                    num_jacobi_iterations=settings.num_jacobi_iterations,
                    groups=groups,
                    prune=limit.kind == "tau",
                    is_cut_short=is_cut_short,
                )
        if found is None:
            return None
        # A soft mask weighs all steps: it has the loss of taking them all, whatever pruning would leave out.
        is_soft = limit.kind == "steps" and module.ponder.column is Column.LOG_WEIGHT
        counts = None if is_soft else found.sums.get("steps_count")
        points.append(_point(limit, found, counts, replace(flops, num_latent_thoughts=limit.num_steps)))
    return tuple(points)


def _limits(module: PonderModel, settings: SweepSettings) -> Iterator[_Limit]:
    num_steps = module.config.ponder.num_latent_thoughts
    for steps in range(num_steps + 1) if settings.over_steps else ():
        model = limited(module, num_latent_thoughts=steps)
        yield _Limit(kind="steps", value=steps, num_steps=steps, model=model)
    for tau in settings.taus:
        model = limited(module, pruning_threshold=tau)
        yield _Limit(kind="tau", value=tau, num_steps=num_steps, model=model)


def _point(
    limit: _Limit, found: Evaluation, counts: Sequence[float] | None, flops: FlopsAccount
) -> SweepPoint:
    mean_steps = float(limit.num_steps) if counts is None else mean_steps_of(counts)
    return SweepPoint(
        kind=limit.kind,
        value=limit.value,
        loss=found.loss,
        mean_steps=mean_steps,
        flops_per_token=flops.inference_per_token(mean_steps),
    )
