"""A page in a headless Chromium, driven by its own protocol (https://chromedevtools.github.io/devtools-protocol)."""

import asyncio
import base64
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import aiohttp

from pipeline.shared.errors import UserError

__all__ = ["BrowserError", "Page", "find_chromium", "open_page"]

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_START_SECONDS = 60.0
_COMMAND_SECONDS = 60.0
_POLL_SECONDS = 0.2


class BrowserError(UserError):
    """There is no browser, or it does not show what it should."""


def find_chromium() -> str | None:
    """Return the path of a Chromium; None if there is none."""
    return next((found for name in _PROGRAMS if (found := shutil.which(name))), None)


class Page:
    """A page of a browser."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse[Any]) -> None:
        """Drive the page behind a socket."""
        self._socket = socket
        self._last_id = 0

    async def emulate(self, *, width: int, height: int, scheme: Literal["light", "dark"]) -> None:
        """Set the size of the window in CSS pixels, and which colours its user prefers."""
        await self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self._call("Emulation.setEmulatedMedia", features=features)

    async def open(self, address: str) -> None:
        """Go to an address."""
        await self._call("Page.navigate", url=address)
        await self.wait_for("document.readyState === 'complete'")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression of JavaScript, which must be one that JSON can hold.

        Raises:
            BrowserError: it raises an error.
        """
        answer = await self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression} must have a value, but fails: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def wait_for(self, condition: str, *, seconds: float = _COMMAND_SECONDS) -> None:
        """Wait until an expression is true.

        Raises:
            BrowserError: it does not become true in time.
        """
        end = time.monotonic() + seconds
        while not await self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > end:
                shown = await self.evaluate("document.title")
                raise BrowserError(f"{condition} must become true on the page {shown!r} within {seconds:g} s")
            await asyncio.sleep(_POLL_SECONDS)

    async def screenshot(self, *, is_whole_page: bool = False) -> bytes:
        """Return a picture of what is in the window, or of the whole page, as PNG."""
        answer = await self._call(
            "Page.captureScreenshot",
            captureBeyondViewport=is_whole_page,
            **({"clip": await self._whole_page()} if is_whole_page else {}),
        )
        return base64.b64decode(answer["data"])

    async def _whole_page(self) -> dict[str, float]:
        size = (await self._call("Page.getLayoutMetrics"))["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last_id += 1
        await self._socket.send_json({"id": self._last_id, "method": method, "params": parameters})
        async with asyncio.timeout(_COMMAND_SECONDS):
            while True:
                message = await self._socket.receive_json()
                # Others are events.
                if message.get("id") == self._last_id:
                    break
        if "error" in message:
            raise BrowserError(f"{method} must be possible, but is not: {message['error']['message']}")
        result: dict[str, Any] = message["result"]
        return result


@asynccontextmanager
async def open_page() -> AsyncIterator[Page]:
    """Start a browser with one page; it ends with the block.

    Raises:
        BrowserError: there is no Chromium, or it does not start.
    """
    program = find_chromium()
    if program is None:
        raise BrowserError("a Chromium must be installed, but is not; on Debian: apt install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                program,
                *("--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
                # It shows our own pages only; in containers its sandbox cannot be set up.
                *("--no-sandbox", "--disable-dev-shm-usage"),
                *("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = await _port(Path(profile) / "DevToolsActivePort", process)
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                    pages = [one for one in await response.json() if one["type"] == "page"]
                async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    yield Page(socket)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def _port(file: Path, process: subprocess.Popen[bytes]) -> int:
    """Return the port that a browser has written once it listens."""
    end = time.monotonic() + _START_SECONDS
    while True:
        lines = file.read_text(encoding="ascii").splitlines() if file.exists() else []
        if len(lines) >= 2:
            return int(lines[0])
        if process.poll() is not None or time.monotonic() > end:
            raise BrowserError(
                f"Chromium must start within {_START_SECONDS:g} s, but has not (exit {process.poll()})"
            )
        await asyncio.sleep(_POLL_SECONDS)
