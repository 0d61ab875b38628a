"""Errors of writing an output, as errors that a user can act on."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.shared.errors import DataError
from pipeline.shared.files import disk_full_as_data_error, resolved_output

# Of a path that cannot be written, whatever is tried.
_NOT_WRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EIO,
    errno.ESTALE,
    errno.ENXIO,
)


@contextmanager
def output_errors(output: Path) -> Iterator[None]:
    """Turn errors of files in, at or above an output into one that names the output.

    Raises:
        DataError: it cannot be written, or the disk is full.
    """
    resolved_output(output)  # raises where a link leads to itself
    try:
        with disk_full_as_data_error(output):
            yield
    except OSError as error:
        if error.errno not in _NOT_WRITABLE or not _concerns(error.filename, output):
            raise
        raise DataError(
            f"the output {output} must be writable, but {error.filename or output} is not "
            f"({error.strerror}); choose another output, or remove what is in its way"
        ) from error


def _concerns(name: object, output: Path) -> bool:
    """Tell whether an error is about an output; one without a name is about an open file of it."""
    if not isinstance(name, str | bytes | os.PathLike):
        return True
    path, place = Path(os.path.abspath(os.fsdecode(name))), Path(os.path.abspath(output))  # noqa: PTH100
    return path == place or place in path.parents or path in place.parents or path.parent == place.parent
