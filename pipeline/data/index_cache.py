"""Arrays that are computed once and then memory-mapped by every process that needs them.

A folder holds each array as NAME.npy, and in ``sha256`` the checksum of each. It is written atomically.
"""

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.leftovers import being_written, remove_abandoned
from pipeline.shared.bounded import wait_until
from pipeline.shared.errors import DataError
from pipeline.shared.files import file_sha256, folder_written_atomically, write_synced

logger = logging.getLogger(__name__)

Arrays = dict[str, NDArray[Any]]

CHECKSUMS = "sha256"
# Larger arrays are mapped, so that all processes of a machine share them.
MOST_BYTES_IN_MEMORY = 8 << 20
# How long to wait for another process that computes the same arrays.
WAIT_SECONDS = 1800.0


def cached_arrays(
    place: Path,
    dtypes: Mapping[str, np.dtype[Any]],
    build: Callable[[], Arrays],
    *,
    wait_seconds: float = WAIT_SECONDS,
) -> Arrays:
    """Map the arrays in a folder, or compute and store them; a damaged folder is rebuilt.

    Where the folder cannot be written, every process computes the arrays and keeps them in memory.

    Args:
        place: folder of the arrays.
        dtypes: of each array, by name; all have one dimension.
        build: computes them.
        wait_seconds: how long to wait for another process that is computing them.
    Raises:
        DataError: the other process did not finish in time.
    """
    if (arrays := _load(place, dtypes)) is not None:
        return arrays
    with _lock(place, wait_seconds):
        # Whoever held the lock before may have stored them.
        if (arrays := _load(place, dtypes)) is not None:
            return arrays
        built = build()
        return built if not _store(place, built) else _load(place, dtypes) or built


@contextlib.contextmanager
def _lock(place: Path, wait_seconds: float) -> Iterator[None]:
    """Exclude all other processes, also those of other machines; a process that dies releases the lock.

    On a file system without locks nobody is excluded: each process stores the same arrays.
    """
    descriptor = None
    with contextlib.suppress(OSError):
        place.parent.mkdir(exist_ok=True)
        descriptor = os.open(place.with_name(f".{place.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if descriptor is not None:
            _acquire(place, descriptor, wait_seconds)
            remove_abandoned(place)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _acquire(place: Path, descriptor: int, wait_seconds: float) -> None:
    def is_acquired() -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            logger.info("no locks in the folder of %s: %s", place, error)
        return True

    if not wait_until(is_acquired, seconds=wait_seconds):
        raise DataError(
            f"{place} must be written within {wait_seconds:.0f} seconds, but another process is still "
            "writing it; run `megaponder data index` on the folder before training, and look for processes "
            "that hang"
        )


def _store(place: Path, arrays: Arrays) -> bool:
    """Replace the folder by these arrays; return False if it cannot be written."""
    try:
        with folder_written_atomically(place) as folder, being_written(folder):
            contents = {f"{name}.npy": _npy(array) for name, array in arrays.items()}
            sums = [f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items()]
            for name, content in {**contents, CHECKSUMS: "".join(sums).encode()}.items():
                write_synced(folder / name, content)
            if place.exists():
                shutil.rmtree(place)
    except PermissionError:
        logger.info("%s is not stored, because the folder is not writable", place)
        return False
    except OSError as error:
        logger.warning("%s is not stored: %s", place, error)
        return False
    return True


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _load(place: Path, dtypes: Mapping[str, np.dtype[Any]]) -> Arrays | None:
    """Map the arrays and check them against their checksums; None if they are absent or damaged."""
    try:
        sums = (place / CHECKSUMS).read_text(encoding="ascii")
        arrays: Arrays = {}
        for name, dtype in dtypes.items():
            path = place / f"{name}.npy"
            digest = file_sha256(path)
            # A mapped file that is truncated later would end the process with a bus error.
            is_mapped = path.stat().st_size > MOST_BYTES_IN_MEMORY
            array = np.load(path, mmap_mode="r" if is_mapped else None, allow_pickle=False)
            array.flags.writeable = False
            if f"{digest}  {name}.npy\n" not in sums or (array.dtype, array.ndim) != (dtype, 1):
                raise ValueError(f"{name}.npy is not what was stored")
            # A view of the base class, whose slices cost less; it keeps the map open.
            arrays[name] = np.asarray(array)
        return arrays
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("the cached %s cannot be read and is rebuilt: %s", place, error)
        return None
