"""Arrays that are worked out once and then mapped by every process that needs them.

A folder holds each array as NAME.npy, and in ``sha256`` the checksum of each. It gets its name when it is
whole, by one rename.
"""

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.shared.errors import DataError
from pipeline.shared.files import publish, temporary_path

logger = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

CHECKSUMS = "sha256"
# How long to wait for another process that works the same arrays out.
WAIT_SECONDS = 1800.0
_POLL_SECONDS = 0.1


def cached_arrays(
    place: Path,
    dtypes: Mapping[str, np.dtype[Any]],
    build: Callable[[], Arrays],
    *,
    wait_seconds: float = WAIT_SECONDS,
) -> Arrays:
    """Map the arrays in a folder, or build and store them; a damaged folder is made anew.

    Where the folder cannot be written, what was built is returned from memory, in every process.

    Args:
        place: folder of the arrays.
        dtypes: of each, by name; all have one dimension.
        build: works them out.
        wait_seconds: how long to wait for another process that does so now.
    Raises:
        DataError: the wait was in vain.
    """
    if (arrays := _load(place, dtypes)) is not None:
        return arrays
    with _turn(place, wait_seconds):
        # Whoever had the turn before may have stored them.
        if (arrays := _load(place, dtypes)) is not None:
            return arrays
        built = build()
        return built if not _store(place, built) else _load(place, dtypes) or built


@contextlib.contextmanager
def _turn(place: Path, wait_seconds: float) -> Iterator[None]:
    """Wait until no other process of this or another machine is within; a process that dies leaves.

    Where there are no locks, several may be within: each stores the same arrays.
    """
    descriptor = None
    with contextlib.suppress(OSError):
        place.parent.mkdir(exist_ok=True)
        descriptor = os.open(place.with_name(f".{place.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if descriptor is not None:
            _lock(place, descriptor, wait_seconds)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(place: Path, descriptor: int, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DataError(
                    f"{place} must be written within {wait_seconds:.0f} seconds, but another process is "
                    "still at it; run `megaponder data index` on the folder beforehand, and look for "
                    "processes that hang"
                ) from None
        except OSError as error:
            logger.info("no locks beside %s: %s", place, error)
            return
        time.sleep(_POLL_SECONDS)


def _store(place: Path, arrays: Arrays) -> bool:
    """Put the arrays in place of what is there; False where that is not possible."""
    temporary = temporary_path(place)
    try:
        temporary.mkdir()
        contents = {f"{name}.npy": _npy(array) for name, array in arrays.items()}
        sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items()]
        for name, content in {**contents, CHECKSUMS: "".join(sums).encode()}.items():
            _write_synced(temporary / name, content)
        if place.exists():
            shutil.rmtree(place)
        publish(temporary, place)
    except PermissionError:
        logger.info("%s is not stored, because the folder is not writable", place)
        return False
    except OSError as error:
        logger.warning("%s is not stored: %s", place, error)
        return False
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return True


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _load(place: Path, dtypes: Mapping[str, np.dtype[Any]]) -> Arrays | None:
    """Map what is there and hold it against its checksums; None where it is absent or damaged."""
    try:
        sums = (place / CHECKSUMS).read_text(encoding="ascii")
        arrays: Arrays = {}
        for name, dtype in dtypes.items():
            path = place / f"{name}.npy"
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            if f"{digest}  {name}.npy\n" not in sums or (array.dtype, array.ndim) != (dtype, 1):
                raise ValueError(f"{name}.npy is not what was stored")
            # A view of the base class, whose slices cost less; it keeps the map open.
            arrays[name] = np.asarray(array)
        return arrays
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("the cached %s cannot be read and is built again: %s", place, error)
        return None
