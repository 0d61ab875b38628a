"""What a user is told where the files of a run cannot be written."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from pipeline.config.schema import RunConfig
from pipeline.shared.errors import DiskFullError, UnwritableOutputError, UserError
from pipeline.shared.files import DISK_FULL

__all__ = ["naming_unwritable_outputs", "on_rank_zero"]

T = TypeVar("T")

# A file or a link in the way, no permission, a read-only file system, a name that it does not take.
_IN_THE_WAY = (
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOENT),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),
)


@contextmanager
def naming_unwritable_outputs(config: RunConfig) -> Iterator[None]:
    """Turn errors of writing the files of a run into ones that say what to do.

    Raises:
        DiskFullError: a disk or a quota is full, or a file reached the size that files may have.
        UnwritableOutputError: the folder of the run or of its checkpoints cannot be written.
    """
    try:
        yield
    except OSError as error:
        named = _named(error, config)
        if named is None:
            raise
        raise named from error


def on_rank_zero(action: Callable[[], T], *, rank: int) -> T | None:
    """Run an action on rank 0; all ranks call it together and have its error.

    Returns:
        the result on rank 0, None elsewhere.
    Raises:
        UserError: of the action, on every rank.
    """
    import torch.distributed

    result: T | None = None
    errors: list[UserError | None] = [None]
    if rank == 0:
        try:
            result = action()
        except UserError as error:
            errors = [error]
    torch.distributed.broadcast_object_list(errors, src=0)
    if errors[0] is not None:
        raise errors[0]
    return result


def _named(error: OSError, config: RunConfig) -> UserError | None:
    file = Path(str(error.filename)) if error.filename is not None else None
    if error.errno in DISK_FULL:
        return DiskFullError(
            f"{file or config.output_dir} must have space for the files of the run, but has not "
            f"({error.strerror}); free some and start the run again: it resumes from its newest checkpoint"
        )
    if file is None or error.errno not in _IN_THE_WAY:
        return None
    folders = {"output_dir": config.output_dir, "checkpoint.directory": config.checkpoint_directory}
    for name, folder in folders.items():
        # A parent is named where the folder itself cannot be created.
        if file.is_relative_to(folder) or folder.is_relative_to(file):
            return UnwritableOutputError(
                f"{name} must be a folder that can be written, but {file} cannot ({error.strerror}); remove "
                "what is in the way, or choose another folder"
            )
    return None
