"""What a command shows on a terminal of 80 columns, as a picture."""

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

from scripts.commands import CommandError

__all__ = ["render_terminal", "shown_by"]

_COLUMNS = 80
_LIMIT_SECONDS = 600


def shown_by(*words: str) -> str:
    """Return what a command of megaponder prints on a terminal, with its colours.

    Raises:
        CommandError: it cannot be run.
    """
    environment = {**os.environ, "COLUMNS": str(_COLUMNS), "FORCE_COLOR": "1", "TERM": "xterm-256color"}
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


def render_terminal(command: str, output: str, file: Path) -> None:
    """Write a terminal with a command and its output as SVG.

    Args:
        command: as it was typed.
        output: with escape sequences.
        file: to write.
    """
    # Recorded, and shown nowhere.
    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 (a device, not a path)
        console = Console(
            record=True, width=_COLUMNS, file=nowhere, force_terminal=True, color_system="truecolor"
        )
        console.print(Text(f"$ {command}", style="bold"))
        console.print(Text.from_ansi(output.rstrip("\n")))
    console.save_svg(str(file), title="megaponder")
