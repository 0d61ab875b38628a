"""A small disk, to test full ones."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, *, size: str) -> Iterator[Path]:
    """Mount a file system at a new folder; skip the test without the rights to do that.

    Args:
        folder: to create.
        size: in bytes, in the notation of mount.
    """
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a disk cannot be filled here: mounting a tmpfs takes root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def make_room(disk: Path) -> None:
    """Give a small disk more room than any test needs."""
    subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
