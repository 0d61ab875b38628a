"""Read files of limited size that somebody else may have written; pipes and devices are not opened."""

import os
import stat
from pathlib import Path

from pipeline.shared.errors import DataError


def read_regular_file(path: Path, *, largest_bytes: int) -> bytes:
    """Return the content of a file.

    Raises:
        DataError: it is a folder, a pipe or a device, which might never end, or it is too large.
        OSError: it does not exist or cannot be read.
    """
    # A pipe that nobody writes to is opened at once with this flag, which means nothing for plain files.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} must be a plain file, but is a folder, a pipe or a device; give a file")
        if status.st_size > largest_bytes:
            raise DataError(
                f"{path} must have at most {largest_bytes} bytes, but has {status.st_size}; check that it is "
                "the right file"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(largest_bytes)
    finally:
        os.close(descriptor)
