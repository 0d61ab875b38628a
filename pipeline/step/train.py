"""One optimizer step: the micro-batches of this rank through Megatron's schedule, then the update."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from megatron_ext.device import device, to_device
from megatron_ext.model.micro_batch import ModelOutput, TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.protocols import WrappedModel
from megatron_ext.schedule.gradients import has_finite_own_gradients
from megatron_ext.schedule.optimizer import apply_update, prepare_update
from megatron_ext.schedule.pass_pipeline import OutputObserver, run_passes
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step.build import TrainingParts
from pipeline.step.divergence import Finding
from pipeline.step.settings import StepSettings

# Given the loss and the gradient norm of a step, returns the reason not to make it, if any.
Judge = Callable[[float, float | None], Finding | None]


def no_objection(_loss: float, _grad_norm: float | None) -> None:
    """Accept every step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """Result of a step, beside the statistics.

    Attributes:
        loss: mean cross-entropy of the global batch, nats per labelled token, the same on all ranks.
        grad_norm: norm of all gradients before clipping, or None where it is not known to be finite.
        finding: why the weights were not updated; None where they were.
        has_finite_loss, has_finite_gradients: whether the losses of this rank's own micro-batches, and the
            gradients it has computed, are finite; determined only where there is a finding.
        num_sweeps: Jacobi sweeps that were run, mean over the micro-batches of all ranks.
    """

    loss: float
    grad_norm: float | None
    finding: Finding | None = None
    has_finite_loss: bool = True
    has_finite_gradients: bool = True
    num_sweeps: float = 0.0

    @property
    def was_updated(self) -> bool:
        """Whether the weights were updated."""
        return self.finding is None


def train_step(
    parts: TrainingParts,
    batches: Sequence[TokenBatch],
    settings: StepSettings,
    *,
    groups: ParallelGroups,
    statistics: StatisticsAccumulator,
    judge: Judge = no_objection,
    progress: Callable[[], None] | None = None,
) -> StepResult:
    """Accumulate the gradient of the global batch and, unless the judge objects, update the weights.

    The loss is the mean over all labelled tokens of the global batch, plus lambda times the penalty, which is
    the mean of the micro-batches' penalties weighted by their real tokens (definitions 2.5). Both means are
    exact however tokens are spread over micro-batches and data-parallel ranks. Losses of single steps and the
    floor under the router's entropy are added likewise (definitions 2.10).

    Args:
        parts: model and optimizer.
        batches: this rank's micro-batches, on the host.
        settings: J, lambda and the others of this step.
        groups: the layout.
        statistics: receives the sums of every micro-batch; unchanged where the step is not made.
        judge: decides on loss and gradient norm, equal on all ranks, before any weight changes.
        progress: called when this rank starts a pass of a micro-batch.
    """
    parts.ddp.zero_grad_buffer()
    parts.optimizer.zero_grad()
    parts.freeze.set(settings.freezes_backbone)
    before = statistics.copy()
    sums = run_schedule(parts.ddp, batches, settings, groups=groups, statistics=statistics, progress=progress)
    loss, num_sweeps = _global_means(sums, groups)
    grad_norm = prepare_update(parts.optimizer)
    finding = judge(loss, grad_norm)
    if finding is None:
        assert grad_norm is not None, "a step without a gradient norm must not be made"
        apply_update(parts.optimizer, grad_norm)
    else:
        statistics.restore(before)
    parts.scheduler.step(increment=1)
    return StepResult(
        loss=loss,
        grad_norm=grad_norm,
        finding=finding,
        # Only where something is wrong: reading a value waits for the device.
        has_finite_loss=finding is None or bool(torch.isfinite(sums).all()),
        has_finite_gradients=finding is None or has_finite_own_gradients(parts.ddp),
        num_sweeps=num_sweeps,
    )


def run_schedule(
    model: PonderModel | WrappedModel,
    batches: Sequence[TokenBatch],
    settings: StepSettings,
    *,
    groups: ParallelGroups,
    statistics: StatisticsAccumulator,
    forward_only: bool = False,
    observe: OutputObserver | None = None,
    progress: Callable[[], None] | None = None,
) -> Tensor:
    """Run all passes of the micro-batches, forward and backward, on all pipeline stages.

    Args:
        model: the wrapped model, or the bare one with `forward_only`.
        batches, settings, groups, statistics: see :func:`train_step`.
        forward_only: no gradients.
        observe: called on the last stage with every micro-batch and its output.
        progress: see :func:`train_step`.

    Returns:
        [4] float64: sum of the cross-entropies, labelled tokens, Jacobi sweeps, and number of this rank's
        micro-batches; zero on all stages but the last.
    """
    sums = torch.zeros(4, dtype=torch.float64, device=device())
    totals = _token_totals(batches, groups)
    scale = len(batches) * groups.dp_size

    def record(batch: TokenBatch, output: ModelOutput) -> None:
        statistics.add(output.statistics, is_limited=settings.limits.num_steps is not None)
        sums[:2] += torch.cat([output.statistics["nll"], output.statistics["labelled_tokens"]]).detach()
        sums[2] += output.num_sweeps
        sums[3] += 1
        if observe is not None:
            observe(batch, output)

    run_passes(
        model,
        batches,
        settings.forward,
        loss=lambda output: _loss(output, totals, settings.penalty_weight, scale),
        forward_only=forward_only,
        observe_output=record,
        progress=progress,
    )
    return sums


def _global_means(sums: Tensor, groups: ParallelGroups) -> tuple[float, float]:
    """Return loss and sweeps, means over the global batch, from what :func:`run_schedule` gave each rank.

    One collective over all ranks gives all of them the same bits, which deciding alike needs. Tensor-parallel
    ranks hold the same sums, so numerator and denominator are too large by the same factor.
    """
    total = sums.clone()
    if groups.world_size > 1:
        torch.distributed.all_reduce(total)
    nll, labelled, num_sweeps, num_micro_batches = (float(value) for value in total.tolist())
    return nll / max(labelled, 1.0), num_sweeps / num_micro_batches


def _token_totals(batches: Sequence[TokenBatch], groups: ParallelGroups) -> Tensor:
    """Return [2]: labelled and real tokens of the global batch, on the device, without a synchronization."""
    labelled = sum(int((batch.labels != IGNORED_LABEL).sum()) for batch in batches)
    real = sum(int(batch.is_real.sum()) for batch in batches)
    totals = to_device(torch.tensor([labelled, real], dtype=torch.float32))
    if groups.dp_size > 1:
        torch.distributed.all_reduce(totals, group=groups.dp)
    return totals.clamp_min(1)


def _loss(output: ModelOutput, totals: Tensor, penalty_weight: float, scale: int) -> Tensor:
    """Return this micro-batch's share of the global mean.

    Megatron divides by the number of micro-batches and averages gradients over data-parallel ranks; `scale`
    undoes both, so that the shares add up.
    """
    labelled, real = totals
    loss: Tensor = output.token_losses.sum() / labelled
    if output.penalty is not None:
        loss = loss + penalty_weight * output.penalty * output.statistics["real_tokens"][0] / real
    if output.step_losses is not None:
        loss = loss + output.step_losses.sum() / labelled
    if output.regularizer is not None:
        loss = loss + output.regularizer * output.statistics["real_tokens"][0] / real
    return loss * scale
