"""TensorBoard for the runs in a folder, as long as a block lasts."""

import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.shared.ports import free_port
from scripts.screenshots.browser import BrowserError

__all__ = ["serve_board"]

_START_SECONDS = 120.0


@contextmanager
def serve_board(folder: Path) -> Iterator[str]:
    """Start TensorBoard and yield its address.

    Args:
        folder: of the runs.
    Raises:
        BrowserError: it does not start.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}/"
    command = ["--logdir", str(folder), "--port", str(port), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tensorboard.main", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + _START_SECONDS
        while not _responds(address):
            if process.poll() is not None or time.monotonic() > end:
                raise BrowserError(f"TensorBoard must start within {_START_SECONDS:g} s, but has not")
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def _responds(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}data/runs", timeout=5) as response:
            # Once it has read the runs.
            return bool(response.read().strip() not in (b"[]", b""))
    except OSError:
        return False
