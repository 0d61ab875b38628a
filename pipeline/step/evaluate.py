"""Measure loss and halting on held-out text, with the training forward without gradients."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from megatron_ext.device import device
from megatron_ext.model.micro_batch import ModelOutput, TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits
from pipeline.metrics.ponder_scalars import Sums, mean_loss
from pipeline.metrics.statistics import StatisticsAccumulator
from pipeline.step.settings import StepSettings
from pipeline.step.train import run_schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Result of an evaluation.

    Attributes:
        sums: statistics over all held-out tokens, on every rank.
        seconds: duration.
    """

    sums: Sums
    seconds: float

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats per labelled token."""
        return mean_loss(self.sums)

    @property
    def tokens_per_second(self) -> float:
        """Real tokens per second over all ranks."""
        return self.sums["real_tokens"][0] / self.seconds


@torch.no_grad()
def evaluate(
    module: PonderModel,
    batches: Iterable[list[TokenBatch]],
    *,
    num_jacobi_iterations: int,
    groups: ParallelGroups,
    prune: bool = False,
    limits: StepLimits = UNLIMITED,
    pondering_share: float = 1.0,
    measures_steps: bool = False,
    observe: Callable[[TokenBatch, ModelOutput], None] | None = None,
    is_cut_short: Callable[[], bool] | None = None,
) -> Evaluation | None:
    """Run the model over held-out global batches; all ranks call it together.

    Args:
        module: the bare model; its training mode is restored.
        batches: this rank's micro-batches of each global batch, equally many on every rank.
        num_jacobi_iterations: J.
        groups: the layout.
        prune: mask pruned slots out instead of weighing them.
        limits: on the steps that tokens take.
        pondering_share: a of a blended start; 1 is the method as it is.
        measures_steps: also measure the loss of every step alone, and of one step more.
        observe: called with every micro-batch of this rank and its output.
        is_cut_short: called before every global batch; returns the same on all ranks.

    Returns:
        The result, or None where it was cut short.
    """
    started = time.monotonic()
    statistics = StatisticsAccumulator(module.statistics_layout(limits), device=device())
    settings = StepSettings(
        num_jacobi_iterations=num_jacobi_iterations,
        penalty_weight=0.0,
        prune=prune,
        limits=limits,
        pondering_share=pondering_share,
        measures_steps=measures_steps,
    )
    was_training = module.training
    module.eval()
    is_whole = True
    for micro_batches in batches:
        if is_cut_short is not None and is_cut_short():
            is_whole = False
            break
        run_schedule(
            module,
            micro_batches,
            settings,
            groups=groups,
            statistics=statistics,
            forward_only=True,
            observe=observe,
        )
    module.train(was_training)
    if not is_whole:
        return None
    sums = statistics.reduce(groups.dp, groups.pp)
    return Evaluation(sums=sums, seconds=time.monotonic() - started)
