"""One optimizer step: the micro-batches of this rank through Megatron's schedule, then the update."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from megatron_ext.batch import TokenBatch
from megatron_ext.host import device
from megatron_ext.micro_batch import ModelOutput
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.pass_pipeline import OutputObserver, run_passes
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from pipeline.build import TrainingParts
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step_settings import StepSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """What a step reports beside the statistics.

    Attributes:
        grad_norm: norm of all gradients before clipping, or None where the update was skipped.
        was_updated: whether the weights were updated.
    """

    grad_norm: float | None
    was_updated: bool


def train_step(
    parts: TrainingParts,
    batches: Sequence[TokenBatch],
    settings: StepSettings,
    *,
    groups: ParallelGroups,
    statistics: StatisticsAccumulator,
) -> StepResult:
    """Accumulate the gradient of the global batch and update the weights.

    The loss is the mean over all labelled tokens of the global batch, plus lambda times the penalty, which is
    the mean of the micro-batches' penalties weighted by their real tokens (definitions 2.5). Both means are
    exact however tokens are spread over micro-batches and data-parallel ranks.

    Args:
        parts: model and optimizer.
        batches: this rank's micro-batches, on the host.
        settings: J, lambda and the like.
        groups: the layout.
        statistics: receives the sums of every micro-batch.
    """
    parts.ddp.zero_grad_buffer()
    parts.optimizer.zero_grad()
    parts.freeze.set(settings.freezes_backbone)
    run_schedule(parts.ddp, batches, settings, groups=groups, statistics=statistics)
    was_updated, grad_norm, _ = parts.optimizer.step()
    parts.scheduler.step(increment=1)
    return StepResult(
        grad_norm=None if grad_norm is None else float(grad_norm), was_updated=bool(was_updated)
    )


def run_schedule(
    model: Any,
    batches: Sequence[TokenBatch],
    settings: StepSettings,
    *,
    groups: ParallelGroups,
    statistics: StatisticsAccumulator,
    forward_only: bool = False,
    observe: OutputObserver | None = None,
) -> None:
    """Run all passes of the micro-batches, forward and backward, on all pipeline stages.

    Args:
        model: the wrapped model, or the bare one with `forward_only`.
        batches, settings, groups, statistics: see :func:`train_step`.
        forward_only: no gradients.
        observe: called on the last stage with every micro-batch and what the model made of it.
    """
    totals = _token_totals(batches, groups)
    scale = len(batches) * groups.dp_size

    def take_in(batch: TokenBatch, output: ModelOutput) -> None:
        statistics.add(output.statistics)
        if observe is not None:
            observe(batch, output)

    run_passes(
        model,
        batches,
        settings.forward,
        loss=lambda output: _loss(output, totals, settings.penalty_weight, scale),
        forward_only=forward_only,
        observe_output=take_in,
    )


def _token_totals(batches: Sequence[TokenBatch], groups: ParallelGroups) -> Tensor:
    """[2]: labelled and real tokens of the global batch, on the device; nothing waits for it."""
    labelled = sum(int((batch.labels != IGNORED_LABEL).sum()) for batch in batches)
    real = sum(int(batch.is_real.sum()) for batch in batches)
    totals = torch.tensor([labelled, real], dtype=torch.float32, device=device())
    if groups.dp_size > 1:
        torch.distributed.all_reduce(totals, group=groups.dp)
    return totals.clamp_min(1)


def _loss(output: ModelOutput, totals: Tensor, penalty_weight: float, scale: int) -> Tensor:
    """This micro-batch's share of the global mean.

    Megatron divides by the number of micro-batches and averages gradients over data-parallel ranks; `scale`
    undoes both, so that the shares add up.
    """
    labelled, real = totals
    loss: Tensor = output.token_losses.sum() / labelled
    if output.penalty is not None:
        loss = loss + penalty_weight * output.penalty * output.statistics["real_tokens"][0] / real
    return loss * scale
