"""Ask for prompts on a terminal, one after the other."""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from pipeline.shared.console import say
from pipeline.shared.errors import UserError
from pipeline.shared.exit_codes import ExitCode

if TYPE_CHECKING:
    from pipeline.ranks.signals import StopFlag

__all__ = ["Answer", "answer_prompts", "asks_for_prompts"]

_INVITATION = "\nprompt> "
_HELP = "Enter alone takes the start of a held-out document; Ctrl-C ends a text, Ctrl-D ends the program."


class Answer(Protocol):
    """What continues prompts and shows the texts."""

    def __call__(self, prompts: Sequence[str | Sequence[int]], *, stop: "StopFlag") -> ExitCode:
        """Return DONE, or INTERRUPTED or REQUEUE where the keyboard or a signal ended it."""


def asks_for_prompts() -> bool:
    """Whether somebody is there to be asked: a terminal, and no launcher that runs several ranks."""
    streams = (sys.stdin, sys.stdout)
    return "WORLD_SIZE" not in os.environ and all(one is not None and one.isatty() for one in streams)


def answer_prompts(
    answer: Answer,
    heldout_prompt: Callable[[], Sequence[int]],
    *,
    stop: "StopFlag",
    ask: Callable[[str], str] = input,
) -> ExitCode:
    """Ask for prompts and answer them until the input ends.

    Args:
        answer: continues one.
        heldout_prompt: returns the prompt of an empty line.
        stop: set by signals; Ctrl-C ends a text, or all while a prompt is asked for.
        ask: shows an invitation and returns a line.
    Returns:
        DONE at the end of the input; otherwise why it ended.
    """
    with suppress(ImportError):
        # Lets `input` edit lines and recall earlier ones.
        import readline  # noqa: F401
    say(_HELP, err=True)
    while True:
        try:
            text = _asked(ask, stop)
        except EOFError:
            say()
            return ExitCode.DONE
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED
        try:
            code = answer([text or heldout_prompt()], stop=stop)
        except UserError as error:
            say(f"error: {error}", err=True)
            continue
        if code not in (ExitCode.DONE, ExitCode.INTERRUPTED):
            return code
        # The next text can be ended again.
        stop.received = None


def _asked(ask: Callable[[str], str], stop: "StopFlag") -> str:
    """Return a line; signals end the wait for it at once, as they would without a flag."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        return ask(_INVITATION)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        stop.received = None
