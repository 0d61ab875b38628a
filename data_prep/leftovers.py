"""Remove what interrupted writes have left: hidden files and folders with temporary names."""

import contextlib
import fcntl
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

# As `temporary_path` makes them.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.tmp-[0-9a-f]+")


def remove_temporaries(folder: Path, is_ours: re.Pattern[str]) -> None:
    """Delete the temporary files of names that match a pattern; the caller owns the folder."""
    for path in _temporaries(folder, is_ours):
        logger.info("removing %s, which an interrupted command has left", path)
        _remove(path)


def remove_abandoned(output: Path) -> None:
    """Delete the temporary files and folders of one output that nobody is writing any more.

    A folder is being written as long as :func:`being_written` holds it. A file has its temporary name for the
    moment of one write.
    """
    if not output.parent.is_dir():
        return
    for path in _temporaries(output.parent, re.compile(re.escape(output.name))):
        if _is_abandoned(path):
            logger.info("removing %s, which an interrupted command has left", path)
            _remove(path)


@contextmanager
def being_written(folder: Path) -> Iterator[None]:
    """Mark a temporary folder as being written, until the block or the process ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        # Some file systems have no locks.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _temporaries(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    with contextlib.suppress(OSError):
        found = ((path, _TEMPORARY.fullmatch(path.name)) for path in folder.iterdir())
        return [path for path, match in found if match is not None and pattern.fullmatch(match["name"])]
    return []


def _is_abandoned(path: Path) -> bool:
    if not path.is_dir() or path.is_symlink():
        return True
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
