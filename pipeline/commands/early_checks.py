"""Checks of what a command reads, before torch is imported: a mistake is reported at once."""

from pathlib import Path

from pipeline.checkpoint.tracker import resolve_checkpoint


def check_checkpoint(
    path: Path, *, iteration: int | None, data: Path | None = None, reads_data: bool
) -> Path:
    """Check that a checkpoint, its settings and its data can be opened.

    Args:
        path: a run, its checkpoints, or one of them.
        iteration: which one; None takes the newest.
        data: folder of the data to use in place of the run's own.
        reads_data: the command reads held-out text.
    Returns:
        The folder of the checkpoint.
    Raises:
        CheckpointError, ConfigError, DataError: it cannot.
    """
    folder = resolve_checkpoint(path, iteration=iteration)
    from data_prep.manifest import load_manifest
    from pipeline.checkpoint.stored_config import stored_checkpoint

    stored = stored_checkpoint(folder, data=data)
    if reads_data or data is not None:
        stored.check_data_exists()
        section = stored.config.data
        if section.heldout_format == "webdataset":
            place = section.heldout_path or section.training_paths[0]
            load_manifest(place).split_shards(section.heldout_split)
    return folder
