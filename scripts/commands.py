"""Run commands of the package as a user would type them."""

import subprocess
import sys

from pipeline.shared.console import say
from pipeline.shared.errors import UserError

_LIMIT_SECONDS = 3600


class CommandError(UserError):
    """A command failed, and has said why."""


def megaponder(*words: str) -> None:
    """Show a command and run it.

    Raises:
        CommandError: it failed, or did not end within an hour.
    """
    shown = f"megaponder {' '.join(words)}"
    say(f"$ {shown}")
    command = [sys.executable, "-P", "-m", "pipeline.cli", *words]
    try:
        done = subprocess.run(command, timeout=_LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"`{shown}` did not end within {_LIMIT_SECONDS} s; try again") from error
    if done.returncode:
        raise CommandError(f"`{shown}` ended with {done.returncode}; see its message above")
