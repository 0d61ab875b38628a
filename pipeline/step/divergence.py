"""Losses and gradients that have left the finite numbers, and losses that jump: found in every step.

The judgement is a pure function of numbers that all ranks have in common, so all ranks come to the same one
in the same step, before the weights are touched.
"""

import json
import logging
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import torch.distributed

from megatron_ext.parallel.groups import ParallelGroups
from pipeline.config.schema import DivergenceConfig
from pipeline.shared.files import write_atomically

__all__ = [
    "BadStep",
    "Finding",
    "FindingKind",
    "describe_bad_step",
    "judge",
    "losses_to_remember",
    "tell_of_bad_step",
]

logger = logging.getLogger(__name__)

REPORT_NAME = "divergence.json"


class FindingKind(StrEnum):
    """What is wrong with a step."""

    NONFINITE = "nonfinite"
    SPIKE = "spike"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A step whose update must not be made, and why in words."""

    kind: FindingKind
    text: str

    def is_skipped(self, settings: DivergenceConfig) -> bool:
        """Whether the run goes on without this step's update."""
        action = settings.on_nonfinite if self.kind is FindingKind.NONFINITE else settings.on_spike
        return action == "skip"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadStep:
    """What is known of a step that was not made.

    Attributes:
        iteration: of the step, counted from 1.
        reason: in words.
        loss, grad_norm: of the global batch, as text where they are not finite.
        ranks_with_bad_loss: ranks of which a micro-batch's loss is not finite.
        ranks_with_bad_gradients: ranks that have computed gradients which are not finite.
        data_hash: of the tokens of the global batch, as in metrics.jsonl.
        num_in_a_row: steps that were not made, this one included.
        last_checkpoint: iteration of the newest checkpoint, to go on from.
    """

    iteration: int
    reason: str
    loss: float | str
    grad_norm: float | str | None
    ranks_with_bad_loss: tuple[int, ...]
    ranks_with_bad_gradients: tuple[int, ...]
    data_hash: str
    num_in_a_row: int
    last_checkpoint: int | None


def judge(
    loss: float, grad_norm: float | None, recent: Sequence[float], settings: DivergenceConfig
) -> Finding | None:
    """Decide whether a step may be made.

    Args:
        loss: mean of the global batch.
        grad_norm: norm of all gradients; None where it is not known to be finite.
        recent: losses of the last steps that were made, newest last.
        settings: when a loss is a spike.
    """
    if not math.isfinite(loss):
        return Finding(kind=FindingKind.NONFINITE, text=f"the loss is {loss}")
    if grad_norm is None or not math.isfinite(grad_norm):
        return Finding(kind=FindingKind.NONFINITE, text=f"the gradient norm is {grad_norm}")
    if settings.spike_factor is None or len(recent) < settings.spike_window:
        return None
    median = statistics.median(recent[-settings.spike_window :])
    if loss <= settings.spike_factor * median:
        return None
    text = f"the loss is {loss:.4f}, {loss / median:.2f} times the median of the last {settings.spike_window}"
    return Finding(kind=FindingKind.SPIKE, text=text)


def losses_to_remember(
    recent: tuple[float, ...], loss: float, settings: DivergenceConfig
) -> tuple[float, ...]:
    """Return the losses a later step is judged by; none where spikes are not looked for."""
    return () if settings.spike_factor is None else (*recent, loss)[-settings.spike_window :]


def describe_bad_step(
    finding: Finding,
    *,
    iteration: int,
    loss: float,
    grad_norm: float | None,
    has_finite_loss: bool,
    has_finite_gradients: bool,
    data_hash: str,
    num_in_a_row: int,
    last_checkpoint: int | None,
    groups: ParallelGroups,
) -> BadStep:
    """Ask all ranks who has the trouble; they call it together.

    Args:
        finding: what all ranks found.
        has_finite_loss, has_finite_gradients: of this rank.
        iteration, loss, grad_norm, data_hash, num_in_a_row, last_checkpoint: see :class:`BadStep`.
        groups: the layout.
    """
    gathered: list[tuple[bool, bool]] = [(True, True)] * groups.world_size
    torch.distributed.all_gather_object(gathered, (has_finite_loss, has_finite_gradients))
    return BadStep(
        iteration=iteration,
        reason=finding.text,
        loss=_for_json(loss),
        grad_norm=None if grad_norm is None else _for_json(grad_norm),
        ranks_with_bad_loss=tuple(rank for rank, (loss_fine, _) in enumerate(gathered) if not loss_fine),
        ranks_with_bad_gradients=tuple(rank for rank, (_, fine) in enumerate(gathered) if not fine),
        data_hash=data_hash,
        num_in_a_row=num_in_a_row,
        last_checkpoint=last_checkpoint,
    )


def tell_of_bad_step(step: BadStep, *, goes_on: bool, folder: Path) -> None:
    """Log a step that was not made and, where it ends the run, write it into the run's folder."""
    who = (
        f"loss of ranks {list(step.ranks_with_bad_loss)}, gradients of ranks "
        f"{list(step.ranks_with_bad_gradients)} not finite"
    )
    if goes_on:
        logger.warning(
            "iteration %d is left out, the %d. in a row: %s (%s; data-hash %s)",
            step.iteration,
            step.num_in_a_row,
            step.reason,
            who,
            step.data_hash,
        )
        return
    path = folder / REPORT_NAME
    write_atomically(path, (json.dumps(asdict(step), indent=1) + "\n").encode())
    logger.error(
        "loss and gradient norm must be finite and without jumps, but at iteration %d %s (%s; data-hash %s); "
        "the run stops without saving, its last checkpoint is of iteration %s. Look into %s, lower "
        "optimizer.lr or ponder.penalty_weight, and start again: it goes on from there",
        step.iteration,
        step.reason,
        who,
        step.data_hash,
        "none" if step.last_checkpoint is None else step.last_checkpoint,
        path,
    )


def _for_json(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
