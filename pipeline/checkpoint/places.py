"""Where the run or the checkpoint is that a user names: the folder of a run, its checkpoints, or one of them.

A path that holds none of them gets the one that was probably meant. Nothing here imports torch.
"""

from difflib import get_close_matches
from pathlib import Path

from pipeline.checkpoint.folder import CHECKPOINTS, CONFIG_NAME, TRACKER_NAME, iteration_of, iterations_in
from pipeline.shared.errors import NoCheckpointError

_MANIFEST = "manifest.json"
# Runs that an error lists.
_MOST_RUNS = 3


def checkpoints_at(path: Path) -> Path:
    """Return the folder of the checkpoints of a run.

    Args:
        path: a run, its checkpoints, or one of them.
    Returns:
        The folder; the path itself where no checkpoint is found.
    """
    if iteration_of(path) is not None and (path.is_dir() or _has_checkpoints(path.parent)):
        return path.parent
    if _has_checkpoints(path):
        return path
    if (path / CHECKPOINTS).is_dir():
        return path / CHECKPOINTS
    if not (path / CONFIG_NAME).is_file():
        return path
    # Reads a configuration, for which most callers have no need.
    from pipeline.checkpoint.stored_config import stored_run

    return stored_run(path).config.checkpoint_directory


def run_at(path: Path) -> Path:
    """Return the folder of a run.

    Args:
        path: the run, its checkpoints, or one of them.
    Raises:
        NoCheckpointError: there is no run.
        CheckpointError, ConfigError: its settings cannot be read.
    """
    if iteration_of(path) is None and (path / CONFIG_NAME).is_file():
        return path
    directory = checkpoints_at(path)
    if directory.name == CHECKPOINTS and (directory.parent / CONFIG_NAME).is_file():
        return directory.parent
    folders = [path] if iteration_of(path) is not None else sorted(directory.glob("iter_*"))
    stored = next((folder for folder in reversed(folders) if (folder / CONFIG_NAME).is_file()), None)
    if stored is not None:
        from pipeline.checkpoint.stored_config import stored_checkpoint

        run = stored_checkpoint(stored).config.output_dir
        if (run / CONFIG_NAME).is_file():
            return run
    raise NoCheckpointError(f"{path} must be the folder of a run, but {what_is_at(path)}")


def what_is_at(path: Path) -> str:
    """Return what a path is that is no run and no checkpoint, and what to write instead, for an error."""
    if not path.exists():
        return f"does not exist; {_similar(path)}"
    if path.is_file():
        run = next((folder for folder in path.resolve().parents if (folder / CONFIG_NAME).is_file()), None)
        return f"is a file; {'give the folder of a run' if run is None else f'did you mean {run}?'}"
    if (path / "config.json").is_file():
        return (
            f"is a Hugging Face folder; convert it first: megaponder convert from-hf {path} --output FOLDER"
        )
    if (path / _MANIFEST).is_file():
        return "holds prepared data; give the folder of a run that was trained on them"
    if (path / CONFIG_NAME).is_file():
        return "is a run that has saved no checkpoint; train it until it has"
    runs = sorted(
        found.parent for found in path.glob(f"*/{CONFIG_NAME}") if iteration_of(found.parent) is None
    )
    if runs:
        return f"holds runs; did you mean {' or '.join(map(str, runs[:_MOST_RUNS]))}?"
    return f"has neither {TRACKER_NAME} nor an iter_ folder; give the folder of a run that has saved"


def _has_checkpoints(path: Path) -> bool:
    return path.is_dir() and ((path / TRACKER_NAME).exists() or bool(iterations_in(path)))


def _similar(path: Path) -> str:
    """Return the path that was probably meant, as a question, from what is in the folder above."""
    parent = next(folder for folder in path.parents if folder.exists())
    missing = path.relative_to(parent).parts[0]
    names = [found.name for found in parent.iterdir()] if parent.is_dir() else []
    close = get_close_matches(missing, names, n=1)
    if not close:
        return f"{parent} has no {missing}; give the folder of a run"
    meant = parent.joinpath(close[0], *path.relative_to(parent).parts[1:])
    return f"did you mean {meant if meant.exists() else parent / close[0]}?"
