"""Save, find, check and load the state of a run.

::

    errors, state, durable      what a checkpoint says of the run, and how small files are written
    folder, tracker             which folder is which, and which is the newest
    checksums, retention        whether a folder is whole, and which folders may go
    content, generators         what is saved
    writing, saver, forecast    saving, at once or in the background
    candidates, loading         going on from the newest checkpoint that is whole
    offline, comparison, ...    reading and writing checkpoints in one process, without a model

Only what needs no torch is loaded with the package.
"""

from typing import TYPE_CHECKING, Any

from pipeline.checkpoint.errors import CheckpointError
from pipeline.checkpoint.folder import CONFIG_NAME, checkpoint_folder
from pipeline.checkpoint.state import TrainState, read_train_state, write_train_state
from pipeline.checkpoint.tracker import TRACKER_NAME, latest_iteration, resolve_checkpoint

if TYPE_CHECKING:
    from pipeline.checkpoint.loading import load_checkpoint, load_weights
    from pipeline.checkpoint.saver import CheckpointSaver, save_checkpoint

__all__ = [
    "CONFIG_NAME",
    "TRACKER_NAME",
    "CheckpointError",
    "CheckpointSaver",
    "TrainState",
    "checkpoint_folder",
    "latest_iteration",
    "load_checkpoint",
    "load_weights",
    "read_train_state",
    "resolve_checkpoint",
    "save_checkpoint",
    "write_train_state",
]

_WITH_TORCH = {
    "CheckpointSaver": "saver",
    "load_checkpoint": "loading",
    "load_weights": "loading",
    "save_checkpoint": "saver",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_WITH_TORCH[name]}"), name)
