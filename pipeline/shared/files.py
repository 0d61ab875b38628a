"""Files that are either whole or absent, checksums, and the lock of a folder."""

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.shared.errors import DataError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write ``content`` under a temporary name in the same folder, sync it, and rename it to ``path``.

    Args:
        path: final name; readers find the old content or the new one, never a part.
        content: bytes, or text to be encoded as UTF-8.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Name for a file that is still being written: hidden, beside ``path``, and unlike any other writer's.

    Process ids would not do: ranks on two machines may write into one shared folder.
    """
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(6)}")


def publish(temporary: Path, path: Path) -> None:
    """Rename a synced temporary file to its final name and sync the folder: a crash keeps the name."""
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def room_needed(folder: Path) -> Iterator[None]:
    """Say in the user's words that a disk is full.

    Raises:
        DataError: what is inside met the end of the disk, of a quota or of the size that files may have.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise DataError(
            f"{folder} must have room for the tokens, but has not ({error.strerror}); make room and run the "
            "command again: what is finished is kept"
        ) from error


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the folder for one writer; the lock ends with the process, so a crash leaves none behind.

    Raises:
        DataError: another process holds it.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(
                f"only one command may write {folder} at a time, but another one is writing it now; "
                "wait for it, or choose another output folder"
            ) from error
        yield
    finally:
        os.close(descriptor)
