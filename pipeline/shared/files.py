"""Atomic writes, checksums, and what happens when a disk is full."""

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.shared.errors import DataError

# Of a disk, of a quota, and of one file; the system's limit (ulimit -f) counts as such.
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write ``content`` under a temporary name in the same folder, sync it, and rename it to ``path``.

    Args:
        path: final name; readers find the old content or the new one, never a part.
        content: bytes, or text to be encoded as UTF-8.
    """
    temporary = temporary_path(path)
    try:
        write_synced(temporary, content.encode("utf-8") if isinstance(content, str) else content)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Write a text atomically to a file that only this user can read, from its first byte on."""
    temporary = temporary_path(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_temporaries(folder: Path, name: str = "*") -> None:
    """Remove what interrupted writes of files or folders have left; nobody may be writing them now.

    Args:
        folder: of the files.
        name: pattern of their final names.
    """
    for leftover in folder.glob(f".{name}.tmp-*"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on disk; a crash in between may leave a part of it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def folder_written_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends, and is removed if it fails.

    ``path`` must then be absent or an empty folder.
    """
    temporary = temporary_path(path)
    temporary.mkdir()
    try:
        yield temporary
        publish(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def temporary_path(path: Path) -> Path:
    """Return a name for what is still being written: hidden, in the folder of ``path``, used by no one else.

    Process ids would not do: ranks on two machines may write into one shared folder.
    """
    return path.with_name(f".{path.name}.tmp-{secrets.token_hex(6)}")


def publish(temporary: Path, path: Path) -> None:
    """Rename a synced temporary file or folder to its final name, and sync the name."""
    temporary.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, where its file system can flush folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems flush files only.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def resolved_output(path: Path) -> Path:
    """Return the absolute path of an output, without links.

    Raises:
        DataError: a link of it leads to itself.
    """
    # Path.resolve() raises an error for such links only before Python 3.13.
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise DataError(
                f"the output {path} must be a path that can be written, but a link of it leads to itself; "
                "remove the link, or choose another output"
            ) from error
    return path.resolve()


@contextmanager
def disk_full_as_data_error(folder: Path) -> Iterator[None]:
    """Turn the errors of a full disk into an error that a user can act on.

    Raises:
        DataError: the disk or a quota is full, or a file reached the size that files may have.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise DataError(
            f"{folder} must have space for the tokens, but has not ({error.strerror}); free some and run the "
            "command again: what is finished is kept"
        ) from error


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
