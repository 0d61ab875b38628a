"""The folders of a run's checkpoints: how one is written, which are finished, which are kept.

::

    <checkpoints>/latest_checkpointed_iteration.txt   the tracker: an iteration, written last
    <checkpoints>/iter_0000100/                       one finished checkpoint
        .metadata, __0_0.distcp, common.pt, ...       Megatron's dist_checkpointing
        run_config.yaml                               the resolved config of the run
        train_state.json                              progress of the run
        checksums.json                                size and SHA-256 of all of these
    <checkpoints>/iter_0000200.partial/               being written, or left by an interrupted save
    <checkpoints>/iter_0000100.replaced.partial/      while iteration 100 is saved again

A folder gets its final name when everything in it is on disk, and only then does the tracker name it. So a
save that is interrupted at any point leaves the previous checkpoint in use. Nothing here imports torch.
"""

import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from pipeline.checkpoint.checksums import CHECKSUMS_NAME, FileDigest, find_damage, write_checksums
from pipeline.checkpoint.state import STATE_NAME
from pipeline.shared.files import remove_temporaries, sync_folder, write_atomically

logger = logging.getLogger(__name__)

TRACKER_NAME = "latest_checkpointed_iteration.txt"
# In the folder of a run: its checkpoints, and the weights that were converted for its start.
CHECKPOINTS = "checkpoints"
CONVERTED_SOURCE = "init_from"
CONFIG_NAME = "run_config.yaml"
COMMON_NAME = "common.pt"
_PARTIAL_SUFFIX = ".partial"
_REPLACED_SUFFIX = f".replaced{_PARTIAL_SUFFIX}"
_FOLDER_PATTERN = re.compile(r"iter_([0-9]{7,18})")


def checkpoint_folder(directory: Path, iteration: int) -> Path:
    """Return the folder of an iteration's checkpoint, whether it exists or not."""
    return directory / f"iter_{iteration:07d}"


def iteration_of(folder: Path) -> int | None:
    """Return the iteration in a folder's name; None if it is not the name of a checkpoint."""
    match = _FOLDER_PATTERN.fullmatch(folder.name)
    return None if match is None else int(match[1])


def is_finished(folder: Path) -> bool:
    """Tell whether a folder has the name and the state of a finished checkpoint."""
    return iteration_of(folder) is not None and (folder / STATE_NAME).is_file()


def iterations_in(directory: Path) -> list[int]:
    """Return the iterations of all checkpoints with their final name, even damaged ones, ascending."""
    found = (iteration_of(path) for path in directory.glob("iter_*") if path.is_dir())
    return sorted(iteration for iteration in found if iteration is not None)


def finished_iterations(directory: Path) -> list[int]:
    """Return the iterations of the finished checkpoints, ascending."""
    return [
        number for number in iterations_in(directory) if is_finished(checkpoint_folder(directory, number))
    ]


def start_partial_checkpoint(directory: Path, iteration: int) -> Path:
    """Clean up after interrupted saves and create the empty folder that a checkpoint is written into."""
    clean_up(directory)
    partial = checkpoint_folder(directory, iteration).with_suffix(_PARTIAL_SUFFIX)
    partial.mkdir(parents=True)
    return partial


def is_partial(path: Path) -> bool:
    """Tell whether a path is what an interrupted save leaves."""
    return path.name.endswith(_PARTIAL_SUFFIX) and iteration_of(_without_suffixes(path)) is not None


def _without_suffixes(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(_PARTIAL_SUFFIX).removesuffix(".replaced"))


def clean_up(directory: Path) -> None:
    """Clean up after interrupted saves: finish those that can be finished, remove the others."""
    for replaced in directory.glob(f"iter_*{_REPLACED_SUFFIX}"):
        _finish_replacement(replaced)
    for leftover in directory.glob(f"iter_*{_PARTIAL_SUFFIX}"):
        logger.warning("removing %s, left by an interrupted save", leftover)
        _remove(leftover)
    remove_temporaries(directory)
    for probe in directory.glob(".probe_*"):
        _remove(probe)


def _remove(path: Path) -> None:
    """Remove a folder, or whatever else has its name."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _finish_replacement(replaced: Path) -> None:
    """Restore a checkpoint whose replacement was interrupted between its two renames."""
    folder = replaced.with_name(replaced.name.removesuffix(_REPLACED_SUFFIX))
    if folder.exists():
        return
    partial = folder.with_suffix(_PARTIAL_SUFFIX)
    # The new one was complete before the old one was renamed, so it wins if it exists.
    source = partial if (partial / CHECKSUMS_NAME).is_file() else replaced
    logger.warning("renaming %s to %s, as an interrupted save was about to", source, folder.name)
    source.rename(folder)
    sync_folder(folder.parent)


def publish(partial: Path, digests: Mapping[str, FileDigest] | None = None) -> Path:
    """Finish a written checkpoint: write its checksums, rename it, then name it in the tracker.

    Args:
        partial: from :func:`start_partial_checkpoint`.
        digests: those of its files that are known.
    """
    write_checksums(partial, digests)
    folder = partial.with_suffix("")
    directory = folder.parent
    if folder.exists():
        # This iteration was saved before, by a run that then went back to an older checkpoint.
        replaced = folder.with_suffix(_REPLACED_SUFFIX)
        folder.rename(replaced)
        partial.rename(folder)
        _remove(replaced)
    else:
        partial.rename(folder)
    sync_folder(directory)
    write_atomically(directory / TRACKER_NAME, f"{iteration_of(folder)}\n")
    return folder


def remove_checkpoint(folder: Path) -> None:
    """Remove a finished checkpoint, so that an interrupted removal leaves no folder that looks finished."""
    shutil.rmtree(folder.rename(folder.with_suffix(_PARTIAL_SUFFIX)))


def remove_old_checkpoints(
    directory: Path, *, newest: int, keep_last: int, keep_every: int | None = None
) -> None:
    """Remove the checkpoints that are too old.

    Kept are the newest ``keep_last``; those of every multiple of ``keep_every``; and any with an iteration
    after the newest, which a run left that then went back. A checkpoint with missing or truncated files does
    not count as one of the last, so that no intact one is removed because of it.

    Args:
        directory: folder of the run's checkpoints.
        newest: the iteration just saved, which is never removed.
        keep_last: at least 1.
        keep_every: in iterations; None keeps none for this reason.
    """
    num_kept = 0
    for iteration in reversed([number for number in iterations_in(directory) if number <= newest]):
        folder = checkpoint_folder(directory, iteration)
        if num_kept < keep_last:
            num_kept += iteration == newest or not find_damage(folder, reads=False)
        elif keep_every is None or iteration % keep_every != 0:
            remove_checkpoint(folder)
