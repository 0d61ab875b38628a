"""The checkpoints in a folder, for people to look at."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint.checksums import Damage, find_damage
from pipeline.checkpoint.folder import checkpoint_folder, iteration_of, iterations_in
from pipeline.checkpoint.places import checkpoints_at, what_is_at
from pipeline.checkpoint.state import TrainState, read_train_state
from pipeline.checkpoint.tracker import tracked_iteration
from pipeline.shared.errors import CheckpointError, NoCheckpointError


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One checkpoint.

    Attributes:
        folder: its ``iter_`` folder.
        num_bytes: size of all its files.
        state: progress of the run; None if it cannot be read.
        damage: damaged files.
        is_tracked: whether the tracker names it.
    """

    folder: Path
    num_bytes: int
    state: TrainState | None
    damage: tuple[Damage, ...]
    is_tracked: bool

    @property
    def iteration(self) -> int:
        """The iteration in the folder's name."""
        found = iteration_of(self.folder)
        assert found is not None, f"not a checkpoint: {self.folder}"
        return found


def folders_at(path: Path, *, iteration: int | None = None) -> list[Path]:
    """Return the checkpoints at a path, even damaged ones.

    Args:
        path: an ``iter_`` folder, a folder of them, or a run.
        iteration: only the checkpoint of this iteration.
    Raises:
        NoCheckpointError: there is none.
    """
    if iteration_of(path) is not None and path.is_dir():
        return [path]
    directory = checkpoints_at(path)
    found = [
        checkpoint_folder(directory, number)
        for number in iterations_in(directory)
        if iteration is None or number == iteration
    ]
    if not found:
        if iteration is not None and iterations_in(directory):
            iterations = ", ".join(map(str, iterations_in(directory)))
            raise NoCheckpointError(
                f"{directory} must hold the checkpoint of iteration {iteration}, but holds only {iterations}"
            )
        raise NoCheckpointError(f"{path} must hold a checkpoint, but {what_is_at(path)}")
    return found


def take_inventory(path: Path, *, iteration: int | None = None, reads: bool) -> list[Entry]:
    """List the checkpoints of a run, oldest first.

    Args:
        path, iteration: see :func:`folders_at`.
        reads: compare checksums; otherwise only presence and sizes of files.
    """
    return [_entry(folder, reads=reads) for folder in folders_at(path, iteration=iteration)]


def tracker_problem(directory: Path) -> str | None:
    """Return why the tracker does not name a checkpoint; None if it names one."""
    try:
        tracked = tracked_iteration(directory)
    except CheckpointError as error:
        return str(error)
    if tracked is None:
        return "there is no tracker"
    if not checkpoint_folder(directory, tracked).is_dir():
        return f"the tracker names iteration {tracked}, which does not exist"
    return None


def _entry(folder: Path, *, reads: bool) -> Entry:
    try:
        state = read_train_state(folder)
    except CheckpointError:
        state = None
    return Entry(
        folder=folder,
        num_bytes=sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        state=state,
        damage=tuple(find_damage(folder, reads=reads)),
        is_tracked=_is_tracked(folder),
    )


def _is_tracked(folder: Path) -> bool:
    try:
        return tracked_iteration(folder.parent) == iteration_of(folder)
    except CheckpointError:
        return False
