"""Everything that is printed: the one place where text from outside meets the terminal.

Documents, file names, prompts, generated text and settings may hold escape sequences, which would move the
cursor, rename the window or hide what stands before them, and brackets that rich would take for markup. Both
are shown as they are written. `tests/test_console_rules.py` checks that nothing prints without this module.
"""

import io
import os
import re
import sys
import threading
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.rule import Rule
from rich.segment import Segment

__all__ = ["FILE_WIDTH", "as_text", "open_console", "printable", "report_crashes", "say"]

# Columns of a file or a pipe, which have no width of their own: tables take what they need.
FILE_WIDTH = 1000
# Of a rule in a file.
RULE_WIDTH = 80

# C0 and C1 control characters except for tabs and line feeds, marks that reorder or break lines of text, and
# halves of surrogate pairs, which stand for bytes of file names that are not UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return text with its control characters written as escapes, such as `\x1b`; lines stay lines."""
    return _UNPRINTABLE.sub(_escape, text)


def say(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text on standard output.

    Args:
        text: from anywhere.
        err: print on standard error instead.
        nl: end the line.
    """
    stream = sys.stderr if err else sys.stdout
    # None where a process was started without this stream.
    if stream is not None:
        stream.write(f"{printable(str(text))}\n" if nl else printable(str(text)))
        stream.flush()


def open_console(*, stderr: bool = False, quiet: bool = False, width: int | None = None) -> Console:
    """Return a console that shows strings as they are; styles are given by `rich.text.Text`.

    Args:
        stderr: print on standard error.
        quiet: print nothing, for ranks that are silent.
        width: columns; default: the terminal's, or as many as are needed in a file.
    """
    console = _SafeConsole(stderr=stderr, quiet=quiet, width=width, markup=False, emoji=False)
    if width is None and not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    return console


def as_text(renderable: RenderableType, *, width: int) -> str:
    """Return what a console of `width` columns would show, without colours."""
    file = io.StringIO()
    _SafeConsole(file=file, width=width, markup=False, emoji=False).print(renderable)
    return file.getvalue().rstrip()


def report_crashes() -> None:
    """Print the tracebacks of unhandled exceptions like other text: their messages hold text from outside."""
    sys.excepthook = _print_traceback
    threading.excepthook = _print_traceback_of_thread


class _SafeConsole(Console):
    """A console whose text is printable, wherever a renderable got it from."""

    def rule(self, *args: Any, **settings: Any) -> None:
        """Print a rule as wide as the terminal, and a short one in a file, whose columns have no limit."""
        width = self.width if self.is_terminal else min(self.width, RULE_WIDTH)
        self.print(Rule(*args, **settings), width=width)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # Control segments are rich's own, such as the moves of the cursor of a progress bar.
            if segment.control or not _UNPRINTABLE.search(segment.text):
                yield segment
            else:
                yield Segment(printable(segment.text), segment.style)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "surrogatepass").decode("ascii")


def _print_traceback_of_thread(crash: threading.ExceptHookArgs) -> None:
    # A thread that calls `sys.exit` has ended as it wanted to.
    if crash.exc_value is not None and crash.exc_type is not SystemExit:
        _print_traceback(crash.exc_type, crash.exc_value, crash.exc_traceback)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    say("".join(traceback.format_exception(kind, error, trace)), err=True, nl=False)
