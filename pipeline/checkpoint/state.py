"""The progress of a run, as it is saved in a checkpoint in a form that people can read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, with_config

from pipeline.shared.errors import CheckpointError
from pipeline.shared.files import write_atomically
from pipeline.shared.foreign_files import read_json_object

Count = Annotated[int, Field(strict=True, ge=0, lt=2**62)]

STATE_NAME = "train_state.json"


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """The progress of a run; with the configuration it determines all that follows, even the data order."""

    iteration: Count
    """Finished iterations."""
    consumed_samples: Count
    """Samples of the global batches of these iterations, skipped ones included: the position in the data."""
    consumed_tokens: Count = 0
    skipped_iterations: Count = 0
    """Iterations without an update, because of a non-finite loss or gradient, or a loss spike."""
    nan_iterations: Count = 0
    """The skipped iterations with a non-finite loss or gradient."""
    skipped_in_a_row: Count = 0
    """Iterations skipped since the last update."""
    recent_losses: tuple[float, ...] = ()
    """Losses by which a spike is recognized, newest last."""
    is_evaluation_due: bool = False
    """An evaluation is due at this iteration and was cut short."""
    training_seconds: float = 0.0
    """Total of all starts of the run."""
    best_heldout_loss: float | None = None
    """Lowest held-out loss so far, nats per token."""
    best_heldout_iteration: Count | None = None
    """The iteration at which it was measured."""
    samples_by_source: Mapping[str, Count] = field(default_factory=dict)
    """Of a blend, the samples of each source: for people, because the position determines them."""
    averaged_iterations: tuple[Count, ...] = ()
    """Not empty if the weights are the mean of these iterations; then there is no optimizer state."""

    def __post_init__(self) -> None:
        # JSON has lists only.
        for name in ("recent_losses", "averaged_iterations"):
            object.__setattr__(self, name, tuple(getattr(self, name)))


def with_best_loss(state: TrainState, heldout_loss: float) -> TrainState:
    """Return the state after a held-out loss was measured."""
    best = state.best_heldout_loss
    if best is not None and not heldout_loss < best:
        return state
    return replace(state, best_heldout_loss=heldout_loss, best_heldout_iteration=state.iteration)


def read_train_state(folder: Path) -> TrainState:
    """Read the progress of a run from its checkpoint.

    Raises:
        CheckpointError: the file is absent, damaged, or of another version.
    """
    path = folder / STATE_NAME
    try:
        return TypeAdapter(TrainState).validate_python(read_json_object(path))
    except (OSError, ValueError) as error:
        names = ", ".join(field.name for field in fields(TrainState))
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{path} must be JSON with {names}, but could not be read ({reason}); use another checkpoint"
        ) from error


def write_train_state(folder: Path, state: TrainState) -> None:
    """Write the progress of a run into a checkpoint that is being written."""
    write_atomically(folder / STATE_NAME, json.dumps(asdict(state), indent=2) + "\n")
