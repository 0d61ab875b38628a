"""What a command shows on a terminal of 80 columns, as a picture."""

import math
import os
import re
import subprocess
import sys

from rich.console import Console
from rich.text import Text

from scripts.commands import CommandError

__all__ = ["render_terminal", "shown_by", "size_of"]

_COLUMNS = 80
_LIMIT_SECONDS = 600
# A picture takes no fonts from other servers.
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
_VIEW_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


def shown_by(*words: str) -> str:
    """Return what a command of megaponder prints on a terminal, with its colours.

    Raises:
        CommandError: it cannot be run.
    """
    environment = {**os.environ, "COLUMNS": str(_COLUMNS), "FORCE_COLOR": "1"}
    environment |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "pipeline.cli", *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    if not done.stdout.strip():
        raise CommandError(f"`megaponder {' '.join(words)}` must print something, but ended: {done.stderr}")
    return done.stdout


def render_terminal(command: str, output: str) -> str:
    """Return a terminal with a command and its output as SVG.

    Args:
        command: as it was typed.
        output: with escape sequences.
    """
    # Recorded, and shown nowhere.
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 (a device, not a path)
        console = Console(
            record=True, width=_COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text.from_ansi(output.rstrip("\n")))
    return _FONT_FACE.sub("", console.export_svg(title="megaponder"))


def size_of(svg: str) -> tuple[int, int]:
    """Return width and height of a terminal in pixels."""
    found = _VIEW_BOX.search(svg)
    assert found is not None, "rich gives its pictures a size"
    return math.ceil(float(found[1])), math.ceil(float(found[2]))
