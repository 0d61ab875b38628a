"""Files that somebody else may have written: read up to a size, and only where they are files."""

import json
import stat
from pathlib import Path
from typing import Any

__all__ = ["read_json_object", "read_limited", "regular_size"]

MOST_JSON_BYTES = 2**28


def regular_size(path: Path) -> int:
    """Return the size of a regular file, in bytes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a folder, a device, or a pipe, from which a reader might wait for ever.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path} is no regular file")
    return found.st_size


def read_limited(path: Path, most_bytes: int) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than the limit.
    """
    size = regular_size(path)
    if size > most_bytes:
        raise ValueError(f"{path} has {size} bytes, more than {most_bytes}")
    return path.read_bytes()


def read_json_object(path: Path, *, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Return the values of a file that holds one JSON object.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, too large, or no JSON object.
    """
    try:
        # A byte-order mark is no part of the text.
        values = json.loads(read_limited(path, most_bytes).decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError(f"it holds {type(values).__name__}, not values by name")
    return values
