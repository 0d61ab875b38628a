"""Files of a data folder, which somebody else may have made."""

from pathlib import Path

from pipeline.shared.errors import DataError
from pipeline.shared.foreign_files import read_limited

LONGEST_NAME_BYTES = 255


def read_regular_file(path: Path, *, largest_bytes: int) -> bytes:
    """Return the content of a file.

    Raises:
        DataError: it is a folder, a pipe or a device, which might never end, or it is too large.
        OSError: it does not exist or cannot be read.
    """
    try:
        return read_limited(path, largest_bytes)
    except ValueError as error:
        raise DataError(
            f"{path} must be a plain file of at most {largest_bytes} bytes, but: {error}; give the right file"
        ) from error


def check_file_name(name: str) -> str:
    """Return a name from a file, if it is one inside a folder, and no path.

    Raises:
        ValueError: it is not.
    """
    is_plain = name not in ("", ".", "..") and not any(sign in name for sign in "/\\") and name.isprintable()
    if not is_plain or len(name.encode("utf-8", "surrogateescape")) > LONGEST_NAME_BYTES:
        raise ValueError(f"must be the name of a file in the folder, but is {name[:LONGEST_NAME_BYTES]!r}")
    return name


def check_inside(folder: Path, name: str) -> None:
    """Check that a file of a folder is not a link to one elsewhere.

    Raises:
        DataError: it is, so that reading the folder would read, or copy, a file that is not part of it.
    """
    path = folder / name
    if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"{path} must be in the folder, but is a link to {path.resolve()}; copy the file into it, "
            "or link the folder as a whole"
        )
