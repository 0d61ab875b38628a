"""Which checkpoint a run's tracker names."""

import os
from pathlib import Path

from pipeline.checkpoint.folder import (
    TRACKER_NAME,
    checkpoint_folder,
    finished_iterations,
    is_finished,
    iteration_of,
)
from pipeline.checkpoint.places import checkpoints_at, what_is_at
from pipeline.shared.errors import CheckpointError, NoCheckpointError
from pipeline.shared.foreign_files import read_limited

# A file of more bytes is something else.
_MOST_BYTES = 4096
_MOST_DIGITS = 18

__all__ = ["TRACKER_NAME", "latest_iteration", "resolve_checkpoint", "tracked_iteration"]


def tracked_iteration(directory: Path) -> int | None:
    """Return the iteration in the tracker, whether there is such a checkpoint or not.

    Returns:
        None without a tracker.
    Raises:
        CheckpointError: it does not hold a number.
    """
    tracker = directory / TRACKER_NAME
    if not os.path.lexists(tracker):
        return None
    try:
        text = read_limited(tracker, _MOST_BYTES).decode("utf-8", errors="replace").strip()
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{tracker} must be a file that holds an iteration, but cannot be read ({error}); "
            f"{_cure(directory)}"
        ) from error
    if not (text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS):
        raise CheckpointError(
            f"{tracker} must hold an iteration, but holds {text[:40]!r}; {_cure(directory)}"
        )
    return int(text)


def latest_iteration(directory: Path) -> int | None:
    """Return the iteration of the newest finished checkpoint, or None if there are no checkpoints at all.

    Raises:
        CheckpointError: the tracker is missing although there are checkpoints, does not hold a number, or
            does not name a finished checkpoint.
    """
    tracker = directory / TRACKER_NAME
    finished = finished_iterations(directory)
    iteration = tracked_iteration(directory)
    if iteration is None and finished:
        raise CheckpointError(
            f"{tracker} must name the checkpoint to use, but is missing, while iteration(s) "
            f"{listed(finished)} exist; {_cure(directory)}"
        )
    if iteration is not None and iteration not in finished:
        raise CheckpointError(
            f"{tracker} names iteration {iteration}, but {checkpoint_folder(directory, iteration)} is not "
            f"a finished checkpoint; {_cure(directory)}"
        )
    return iteration


def resolve_checkpoint(path: Path, *, iteration: int | None = None) -> Path:
    """Return the folder of one finished checkpoint.

    Args:
        path: a run, its checkpoints, or one of them (``iter_...``).
        iteration: which one; None means the tracker's, or the one that the path names.

    Raises:
        NoCheckpointError: there is no such checkpoint.
        CheckpointError: the tracker names none, see :func:`latest_iteration`.
    """
    named = iteration_of(path)
    if is_finished(path) and iteration in (None, named):
        return path
    directory = checkpoints_at(path)
    if named is not None and directory != path and iteration is None:
        raise NoCheckpointError(_unfinished(path, directory))
    wanted = latest_iteration(directory) if iteration is None else iteration
    if wanted is None or not finished_iterations(directory):
        raise NoCheckpointError(f"{path} must hold a checkpoint, but {what_is_at(path)}")
    folder = checkpoint_folder(directory, wanted)
    if not is_finished(folder):
        raise NoCheckpointError(_unfinished(folder, directory))
    return folder


def _unfinished(folder: Path, directory: Path) -> str:
    return (
        f"{folder} must be a finished checkpoint, but is not; "
        f"finished iterations: {listed(finished_iterations(directory))}"
    )


def listed(iterations: list[int]) -> str:
    """Render iterations for a message."""
    return ", ".join(str(iteration) for iteration in iterations) or "none"


def _cure(directory: Path) -> str:
    tracker, finished = directory / TRACKER_NAME, finished_iterations(directory)
    if finished:
        return f"write one of {listed(finished)} into {tracker} to resume from it, or start in another folder"
    return f"remove {tracker} to start from scratch, or restore the checkpoint"
