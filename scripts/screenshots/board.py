"""TensorBoard for the runs in a folder, as long as a block lasts."""

import asyncio
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.shared.ports import free_port
from scripts.screenshots.browser import BrowserError, Page

__all__ = ["serve_board", "shown_charts"]

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


# Its elements have trees of their own, which no selector crosses.
_CHARTS = """(() => {
  const all = (node, name, found) => {
    if (node.matches && node.matches(name)) found.push(node);
    for (const inner of [...(node.shadowRoot ? node.shadowRoot.children : []), ...node.children])
      all(inner, name, found);
    return found;
  };
  const texts = (node, name) => all(node, name, []).map(one => one.textContent.trim());
  const cards = all(document.body, 'tf-custom-scalar-multi-line-chart-card', []);
  return cards.map(card => [texts(card, '.heading-label.name, .heading-label')[0],
                            texts(card, '.match-list-entry')]);
})()"""
_CURVE = re.compile(r"\S+\s+(?P<tag>.+?)\s+\((?P<run>[^()]+)\)", re.DOTALL)


async def shown_charts(page: Page, address: str) -> dict[str, set[str]]:
    """Open the page of related curves, and return the tags that each of its charts draws.

    Args:
        page: of a browser.
        address: of TensorBoard.
    Raises:
        BrowserError: no chart has any curve within a minute.
    """
    await page.open(f"{address}#custom_scalars")
    await page.wait_for(f"{_CHARTS}.some(([title, curves]) => title && curves.length)")
    # The charts of a page are filled at the same time; this is for the last of them.
    await asyncio.sleep(2)
    return {title: {_tag(curve) for curve in curves} for title, curves in await page.evaluate(_CHARTS)}


def _tag(curve: str) -> str:
    """Return the tag of an entry such as ``symbol tag (run)``."""
    found = _CURVE.fullmatch(curve)
    return curve if found is None else found["tag"]
