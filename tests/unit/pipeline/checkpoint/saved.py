"""Checkpoints without tensors, for tests of folders."""

from pathlib import Path

from pipeline.checkpoint.folder import publish, start_partial_checkpoint
from pipeline.checkpoint.state import TrainState, write_train_state


def write_partial(directory: Path, iteration: int) -> Path:
    partial = start_partial_checkpoint(directory, iteration)
    write_train_state(partial, TrainState(iteration=iteration, consumed_samples=8 * iteration))
    (partial / "__0_0.distcp").write_bytes(b"tensors of %d" % iteration)
    return partial


def save(directory: Path, iteration: int) -> Path:
    return publish(write_partial(directory, iteration))


def folders(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_dir())
