"""How far a run is: the part of a checkpoint that people read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from pipeline.shared.errors import CheckpointError
from pipeline.shared.files import write_atomically

STATE_NAME = "train_state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """How far a run is. With the config it determines all that follows, data order included."""

    iteration: int
    """Finished iterations."""
    consumed_samples: int
    """Samples of the global batches of those iterations, skipped ones included: the cursor in the data."""
    consumed_tokens: int = 0
    skipped_iterations: int = 0
    """Iterations without an update: loss or gradient were not finite, or the loss jumped."""
    nan_iterations: int = 0
    """Of the skipped iterations, those whose loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    """Iterations without an update since the last one with one."""
    recent_losses: tuple[float, ...] = ()
    """Losses by which a jump is recognized, newest last."""
    is_evaluation_due: bool = False
    """An evaluation belongs to this iteration and was cut short."""
    training_seconds: float = 0.0
    """Over all runs that led here."""
    best_heldout_loss: float | None = None
    """Lowest held-out loss so far, nats per token."""
    best_heldout_iteration: int | None = None
    """When it was measured."""
    samples_by_source: Mapping[str, int] = field(default_factory=dict)
    """Of a blend, the samples of each source: for people, as the cursor determines them."""
    averaged_iterations: tuple[int, ...] = ()
    """Not empty where the weights are the mean of these iterations; there is no optimizer's state then."""

    def __post_init__(self) -> None:
        # JSON has lists only.
        for name in ("recent_losses", "averaged_iterations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


def with_best_loss(state: TrainState, heldout_loss: float) -> TrainState:
    """Take in a held-out loss just measured."""
    best = state.best_heldout_loss
    if best is not None and not heldout_loss < best:
        return state
    return replace(state, best_heldout_loss=heldout_loss, best_heldout_iteration=state.iteration)


def read_train_state(folder: Path) -> TrainState:
    """Read how far the run was at a checkpoint.

    Raises:
        CheckpointError: the file is absent, damaged, or of another version.
    """
    path = folder / STATE_NAME
    try:
        return TrainState(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        names = ", ".join(field.name for field in fields(TrainState))
        raise CheckpointError(
            f"{path} must be JSON with {names}, but could not be read ({error}); use another checkpoint"
        ) from error


def write_train_state(folder: Path, state: TrainState) -> None:
    """Write how far the run is into a checkpoint that is being made."""
    write_atomically(folder / STATE_NAME, json.dumps(asdict(state), indent=2) + "\n")
