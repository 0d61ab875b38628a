"""Write new checkpoints from existing ones, in one process: in other files, or the mean of several."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from data_prep.tokenizers.tokenizer import TOKENIZER_NAMES
from pipeline.checkpoint.content import GENERATORS_KEY, OPTIMIZER_PREFIXES
from pipeline.checkpoint.folder import (
    COMMON_NAME,
    CONFIG_NAME,
    clean_up,
    is_partial,
    publish,
    start_partial_checkpoint,
)
from pipeline.checkpoint.identity import IDENTITY_NAME
from pipeline.checkpoint.offline import Chunk, OfflineReader, OfflineWriter, pieces_of
from pipeline.checkpoint.state import read_train_state, write_train_state
from pipeline.checkpoint.unpickling import read_common
from pipeline.shared.errors import CheckpointError

_SMALL_FILES = ("metadata.json", COMMON_NAME, CONFIG_NAME)

OnBytes = Callable[[int], object]


def _ignore(_num_bytes: int) -> None:
    """Show no progress."""


def reshard(source: Path, directory: Path, *, num_files: int, on_bytes: OnBytes = _ignore) -> Path:
    """Rewrite a checkpoint with its tensors in another number of files.

    Args:
        source: an ``iter_`` folder.
        directory: an empty or absent folder, for the checkpoint and a tracker.
        num_files: fewer are written if chunks are large.
        on_bytes: called with each chunk's size when it is written.
    Returns:
        The new ``iter_`` folder.
    Raises:
        CheckpointError: the source cannot be read, or the directory is not empty.
    """
    reader, state = OfflineReader(source), read_train_state(source)
    read_common(source)
    with _new_checkpoint(directory, state.iteration) as partial:
        with OfflineWriter(partial, num_files=num_files, total_bytes=reader.num_bytes) as writer:
            for name, chunk in pieces_of(reader):
                values = reader.read_chunk(name, chunk)
                writer.write_chunk(name, values, chunk=chunk, size=reader.tensors[name].size)
                on_bytes(values.nbytes)
            for name in reader.objects:
                writer.write_bytes(name, reader.read_bytes(name))
        _copy_small_files(source, partial)
        write_train_state(partial, state)
        return publish(partial)


def average(sources: Sequence[Path], directory: Path, *, on_bytes: OnBytes = _ignore) -> Path:
    """Write the mean of the weights of several checkpoints, computed in float64, one chunk at a time.

    The result has no optimizer state. It serves evaluation, generation and as initial weights.

    Args:
        sources: ``iter_`` folders of one run, or of runs of the same model; at least two.
        directory: an empty or absent folder, for the checkpoint, with the iteration of the last source, and
            a tracker.
        on_bytes: called with each chunk's size when it is written.
    Returns:
        The new ``iter_`` folder.
    Raises:
        CheckpointError: a source cannot be read or has other weights than the first, or the directory is
            not empty.
    """
    readers = [OfflineReader(source) for source in sources]
    states = [read_train_state(source) for source in sources]
    read_common(sources[-1])
    names = [_weights_of(reader) for reader in readers]
    for source, own in zip(sources[1:], names[1:], strict=True):
        if own != names[0]:
            differing = sorted(name for name, _ in set(own.items()) ^ set(names[0].items()))
            raise CheckpointError(
                f"{source} must have the weights of {sources[0]}, but differs in "
                f"{', '.join(differing[:10])}; average checkpoints of one model"
            )
    with _new_checkpoint(directory, states[-1].iteration) as partial:
        with OfflineWriter(partial) as writer:
            for name, chunk in pieces_of(readers[0]):
                if name in names[0]:
                    entry = readers[0].tensors[name]
                    mean = _mean(readers, name, chunk).to(entry.properties.dtype)
                    writer.write_chunk(name, mean, chunk=chunk, size=entry.size)
                    on_bytes(mean.nbytes)
            for name in readers[-1].objects:
                if not name.startswith((GENERATORS_KEY, *OPTIMIZER_PREFIXES)):
                    writer.write_bytes(name, readers[-1].read_bytes(name))
        _copy_small_files(sources[-1], partial)
        iterations = tuple(state.iteration for state in states)
        # The mean has not been evaluated.
        unmeasured = replace(states[-1], best_heldout_loss=None, best_heldout_iteration=None)
        write_train_state(partial, replace(unmeasured, averaged_iterations=iterations))
        return publish(partial)


def _mean(readers: Sequence[OfflineReader], name: str, chunk: Chunk) -> torch.Tensor:
    # read() checks the sizes before memory is taken for them.
    total = readers[0].read(name, chunk).double()
    for reader in readers[1:]:
        total += reader.read(name, chunk).double()
    return total / len(readers)


def _weights_of(reader: OfflineReader) -> dict[str, torch.Size]:
    return {
        name: entry.size for name, entry in reader.tensors.items() if not name.startswith(OPTIMIZER_PREFIXES)
    }


@contextmanager
def _new_checkpoint(directory: Path, iteration: int) -> Iterator[Path]:
    """Start a checkpoint in a new folder: one that a run saves into must not be disturbed.

    What an earlier call left that was killed is removed, and so is what this one leaves on an error.
    """
    existed = directory.is_dir()
    if existed and not all(is_partial(path) for path in directory.iterdir()):
        raise CheckpointError(
            f"{directory} must be empty or absent, but has content; give another folder with --output"
        )
    try:
        partial = start_partial_checkpoint(directory, iteration)
        yield partial
    except BaseException:
        clean_up(directory)
        if not existed and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
        raise


def _copy_small_files(source: Path, partial: Path) -> None:
    for name in _SMALL_FILES:
        shutil.copyfile(source / name, partial / name)
    for name in (IDENTITY_NAME, *TOKENIZER_NAMES.values()):
        if (source / name).is_file():
            shutil.copyfile(source / name, partial / name)
