"""Run a script, and commands of the package from it; they end when the script is stopped."""

import subprocess
import sys
from collections.abc import Callable

from data_prep.on_ray.interrupts import terminate_like_interrupt
from pipeline.commands.shared import exit_on_user_error
from pipeline.shared.console import say
from pipeline.shared.errors import UserError

_LIMIT_SECONDS = 3600
# On Ctrl-C the terminal tells the command as well; a second signal would interrupt its cleaning up.
_CLEAN_UP_SECONDS = 5.0
# A training that is stopped finishes its step and saves.
_SAVE_SECONDS = 600


class CommandError(UserError):
    """A command failed, and has said why."""


def run_script(app: Callable[[], object]) -> None:
    """Run a script's command line: errors that a user can cure have no traceback, SIGTERM is like Ctrl-C."""
    with exit_on_user_error(), terminate_like_interrupt():
        app()


def megaponder(*words: str) -> None:
    """Show a command and run it.

    Raises:
        CommandError: it failed, or did not end within an hour.
    """
    shown = f"megaponder {' '.join(words)}"
    say(f"$ {shown}")
    command = [sys.executable, "-P", "-m", "pipeline.cli", *words]
    process = subprocess.Popen(command)
    try:
        process.wait(_LIMIT_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"`{shown}` did not end within {_LIMIT_SECONDS} s; try again") from error
    finally:
        stop(process, grace_seconds=_CLEAN_UP_SECONDS)
    if process.returncode:
        raise CommandError(f"`{shown}` ended with {process.returncode}; see its message above")


def stop(process: subprocess.Popen[bytes], *, grace_seconds: float = 0.0) -> None:
    """Let a command that still runs save and end; kill it if that takes too long.

    Args:
        process: the command; one that has ended is left alone.
        grace_seconds: how long it may take to end without being told.
    """
    try:
        process.wait(timeout=grace_seconds)
        return
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        process.wait(timeout=_SAVE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
