"""The thresholds that were found for budgets, in ``budgets.json`` beside the checkpoints they belong to."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from megatron_ext.ponder.step_limits import HaltingSignal, StepLimits
from pipeline.checkpoint.agreement import on_rank_zero
from pipeline.evaluation.budget import Budget
from pipeline.evaluation.under_limits import HeldoutText
from pipeline.shared.errors import CheckpointError
from pipeline.shared.files import write_atomically

logger = logging.getLogger(__name__)

BUDGETS_FILE = "budgets.json"
STRICT = ConfigDict(extra="forbid")


@with_config(STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class MetBudget:
    """The threshold that was found for a budget, and what it really spends on the held-out text.

    Attributes:
        iteration: of the checkpoint.
        budget: as it was written: steps per token, or a share of the operations of all steps.
        step_limit: most steps of a token; None: the trained K.
        signal: what is compared with the threshold, by name; None: the model's own router or gates.
        data: folder or prefix of the held-out text.
        num_samples: held-out rows of the run's length that it was searched on.
        threshold: tau.
        loss: nats per labelled token at this threshold.
        mean_steps: extra steps per token that were taken.
        flops_per_token: of cached decoding, at these steps.
        flops_share: of the operations of taking all steps.
    """

    iteration: int
    budget: str
    step_limit: int | None
    signal: str | None
    data: str
    num_samples: int
    threshold: float
    loss: float
    mean_steps: float
    flops_per_token: float
    flops_share: float

    @property
    def limits(self) -> StepLimits:
        """The limits under which it was met."""
        signal = None if self.signal is None else HaltingSignal(self.signal)
        return StepLimits(num_steps=self.step_limit, threshold=self.threshold, signal=signal)

    @property
    def key(self) -> tuple[Any, ...]:
        """What it was asked for."""
        return self.iteration, self.budget, self.step_limit, self.signal, self.data, self.num_samples


@with_config(STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBudgets:
    """The content of the file."""

    format: Literal["megaponder.budgets/1"] = "megaponder.budgets/1"
    budgets: tuple[MetBudget, ...] = ()


def met_budget(text: HeldoutText, budget: Budget, limits: StepLimits) -> MetBudget:
    """Return the threshold for a budget: from the file, or found now and stored; all ranks call it together.

    Args:
        text: the checkpoint, and what to search on.
        budget: for the mean over the text.
        limits: on the number of steps, and the signal.
    Raises:
        CheckpointError: the file cannot be read.
        DataError: the budget is below what no steps cost.
    """
    opened = text.opened
    path = opened.config.output_dir / BUDGETS_FILE
    data = str(opened.config.data.heldout_path or opened.config.data.training_paths[0])
    num_samples = text.batches.num_samples
    key = (opened.state.iteration, str(budget), limits.num_steps, limits.signal, data, num_samples)
    stored = on_rank_zero(lambda: next((one for one in _load(path).budgets if one.key == key), None))
    if stored is not None:
        logger.info("budget %s: threshold %.6g from %s", budget, stored.threshold, path)
        return stored
    result = text.meet(budget, limits)
    spent = text.spending(result)
    assert result.limits.threshold is not None, "a search ends with a threshold"
    found = MetBudget(
        iteration=opened.state.iteration,
        budget=str(budget),
        step_limit=limits.num_steps,
        signal=limits.signal,
        data=data,
        num_samples=num_samples,
        threshold=result.limits.threshold,
        loss=result.loss,
        mean_steps=spent.mean_steps,
        flops_per_token=spent.flops_per_token,
        flops_share=spent.flops_share,
    )
    on_rank_zero(lambda: _store(found, path))
    return found


def _load(path: Path) -> StoredBudgets:
    if not path.is_file():
        return StoredBudgets()
    try:
        return TypeAdapter(StoredBudgets).validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{path} must be a file of budgets, but is not ({error.error_count()} problems); remove it and "
            "run the command again"
        ) from error


def _store(found: MetBudget, path: Path) -> None:
    others = [one for one in _load(path).budgets if one.key != found.key]
    content = StoredBudgets(budgets=(*others, found))
    try:
        write_atomically(path, TypeAdapter(StoredBudgets).dump_json(content, indent=1) + b"\n")
    except OSError as error:
        logger.warning("the threshold of budget %s could not be stored: %s", found.budget, error)
