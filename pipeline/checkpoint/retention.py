"""Which checkpoints of a run are kept."""

from pathlib import Path

from pipeline.checkpoint.checksums import find_damage
from pipeline.checkpoint.folder import checkpoint_folder, iterations_in, remove_checkpoint


def remove_old_checkpoints(
    directory: Path, *, newest: int, keep_last: int, keep_every: int | None = None
) -> None:
    """Remove what is too old.

    Kept are the newest checkpoint and those before it, ``keep_last`` in all; those of every multiple of
    ``keep_every``; and any that lies after the newest, left by a run that then went back. A checkpoint with
    missing or truncated files does not count as one of the last, so that a good one is not removed for it.

    Args:
        directory: folder of the run's checkpoints.
        newest: the iteration just saved, which is never removed.
        keep_last: at least 1.
        keep_every: in iterations; None keeps none for that.
    """
    num_kept = 0
    for iteration in reversed([number for number in iterations_in(directory) if number <= newest]):
        folder = checkpoint_folder(directory, iteration)
        if num_kept < keep_last:
            num_kept += iteration == newest or not find_damage(folder, reads=False)
        elif keep_every is None or iteration % keep_every != 0:
            remove_checkpoint(folder)
