"""The folders of a run's checkpoints: which are finished, which is the newest, which may go.

::

    <checkpoints>/latest_checkpointed_iteration.txt   the tracker: an iteration, written last
    <checkpoints>/iter_0000100/                       one finished checkpoint
        .metadata, __0_0.distcp, common.pt, ...       Megatron's dist_checkpointing
        run_config.yaml                               the resolved config of the run
        train_state.json                              how far the run was
    <checkpoints>/iter_0000200.partial/               being written, or left by an interrupted save

A folder gets its final name when everything in it is on disk, and the tracker names it after that. So a save
interrupted at whatever moment leaves the previous checkpoint in use. Nothing here touches torch.
"""

import json
import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path

__all__ = [
    "CONFIG_NAME",
    "TRACKER_NAME",
    "CheckpointError",
    "TrainState",
    "checkpoint_folder",
    "latest_iteration",
    "publish",
    "read_train_state",
    "remove_old_checkpoints",
    "remove_partial_checkpoints",
    "resolve_checkpoint",
    "start_partial_checkpoint",
    "write_train_state",
]

logger = logging.getLogger(__name__)

TRACKER_NAME = "latest_checkpointed_iteration.txt"
CONFIG_NAME = "run_config.yaml"
_STATE_NAME = "train_state.json"
_PARTIAL_SUFFIX = ".partial"
_FOLDER_PATTERN = re.compile(r"iter_(\d{7,})")


class CheckpointError(RuntimeError):
    """A checkpoint is absent, damaged, or of another model; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """How far a run is. With the config it determines all that follows, data order included."""

    iteration: int
    """Finished iterations."""
    consumed_samples: int
    """Samples of the global batches of those iterations, skipped ones included."""
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


def checkpoint_folder(directory: Path, iteration: int) -> Path:
    """Return where the checkpoint of an iteration lies, whether it exists or not."""
    return directory / f"iter_{iteration:07d}"


def latest_iteration(directory: Path) -> int | None:
    """Return the iteration of the newest finished checkpoint, or None where there are no checkpoints at all.

    Raises:
        CheckpointError: the tracker is missing beside checkpoints, holds no number, or names no finished
            checkpoint.
    """
    tracker = directory / TRACKER_NAME
    finished = _finished_iterations(directory)
    if not tracker.is_file():
        if not finished:
            return None
        raise CheckpointError(
            f"{tracker} must name the checkpoint to use, but is missing, while iteration(s) "
            f"{_listed(finished)} lie beside it; {_cure(tracker, finished)}"
        )
    text = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if not text.isdecimal():
        raise CheckpointError(
            f"{tracker} must hold an iteration, but holds {text[:40]!r}; {_cure(tracker, finished)}"
        )
    if int(text) not in finished:
        raise CheckpointError(
            f"{tracker} names iteration {int(text)}, but {checkpoint_folder(directory, int(text))} is no "
            f"finished checkpoint; {_cure(tracker, finished)}"
        )
    return int(text)


def resolve_checkpoint(path: Path, *, iteration: int | None = None) -> Path:
    """Return the folder of one finished checkpoint.

    Args:
        path: a checkpoint's own folder (``iter_...``), or the folder that holds them and the tracker.
        iteration: which one; None takes the tracker's.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    if iteration is None and _is_finished(path):
        return path
    wanted = latest_iteration(path) if iteration is None else iteration
    if wanted is None:
        raise CheckpointError(
            f"{path} must hold a checkpoint, but has neither {TRACKER_NAME} nor an iter_ folder; "
            "give the checkpoint folder of a run that has saved"
        )
    folder = checkpoint_folder(path, wanted)
    if not _is_finished(folder):
        raise CheckpointError(
            f"{folder} must be a finished checkpoint, but is not; "
            f"iterations there: {_listed(_finished_iterations(path))}"
        )
    return folder


def read_train_state(folder: Path) -> TrainState:
    """Read how far the run was at a checkpoint.

    Raises:
        CheckpointError: the file is absent, damaged, or of another version.
    """
    path = folder / _STATE_NAME
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return TrainState(**{**state, "recent_losses": tuple(state.get("recent_losses", ()))})
    except (OSError, ValueError, TypeError) as error:
        names = ", ".join(field.name for field in fields(TrainState))
        raise CheckpointError(
            f"{path} must be JSON with {names}, but could not be read ({error}); use another checkpoint"
        ) from error


def write_train_state(folder: Path, state: TrainState) -> None:
    """Write how far the run is into a checkpoint that is being made."""
    _write_durably(folder / _STATE_NAME, json.dumps(asdict(state), indent=2) + "\n")


def start_partial_checkpoint(directory: Path, iteration: int) -> Path:
    """Remove what interrupted saves left and make the empty folder that a checkpoint is written into."""
    remove_partial_checkpoints(directory)
    partial = checkpoint_folder(directory, iteration).with_suffix(_PARTIAL_SUFFIX)
    partial.mkdir(parents=True)
    return partial


def remove_partial_checkpoints(directory: Path) -> None:
    """Remove folders that interrupted saves left."""
    for leftover in directory.glob(f"iter_*{_PARTIAL_SUFFIX}"):
        logger.warning("removing %s, left by an interrupted save", leftover)
        shutil.rmtree(leftover)


def publish(partial: Path) -> Path:
    """Give a completely written checkpoint its final name, then name it in the tracker."""
    folder = partial.with_suffix("")
    directory = folder.parent
    _sync_folder(partial)
    if folder.exists():
        # Saved before at this iteration by a run that then went back further than this.
        replaced = folder.with_suffix(f".replaced{_PARTIAL_SUFFIX}")
        folder.rename(replaced)
        partial.rename(folder)
        shutil.rmtree(replaced)
    else:
        partial.rename(folder)
    _sync_folder(directory)
    match = _FOLDER_PATTERN.fullmatch(folder.name)
    assert match is not None, f"not a checkpoint folder: {folder}"
    _write_durably(directory / TRACKER_NAME, f"{int(match[1])}\n")
    return folder


def remove_old_checkpoints(directory: Path, *, keep_last: int) -> None:
    """Keep the newest ``keep_last`` finished checkpoints (at least 1) and always the tracker's."""
    latest = latest_iteration(directory)
    for iteration in _finished_iterations(directory)[: -max(keep_last, 1)]:
        if iteration != latest:
            folder = checkpoint_folder(directory, iteration)
            # Renamed first: a removal that is interrupted leaves no folder that looks finished.
            doomed = folder.rename(folder.with_suffix(_PARTIAL_SUFFIX))
            shutil.rmtree(doomed)


def _is_finished(folder: Path) -> bool:
    return _FOLDER_PATTERN.fullmatch(folder.name) is not None and (folder / _STATE_NAME).is_file()


def _finished_iterations(directory: Path) -> list[int]:
    matches = (
        _FOLDER_PATTERN.fullmatch(path.name) for path in directory.glob("iter_*") if _is_finished(path)
    )
    return sorted(int(match[1]) for match in matches if match is not None)


def _listed(iterations: list[int]) -> str:
    return ", ".join(str(iteration) for iteration in iterations) or "none"


def _cure(tracker: Path, finished: list[int]) -> str:
    if finished:
        return (
            f"write one of {_listed(finished)} into {tracker} to go on from there, or start in another folder"
        )
    return f"remove {tracker} to start anew, or restore the checkpoint"


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
