"""Progress of long work: a bar on a terminal, a few plain lines elsewhere, nothing on silent ranks.

All displays show the share that is done, a state such as rates or a loss, and the time left.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress

from pipeline.shared.console import open_console

__all__ = [
    "BarProgress",
    "LinesProgress",
    "PlainProgress",
    "Progress",
    "SilentProgress",
    "TimeLeft",
    "open_bar",
    "open_progress",
    "render_duration",
    "tracked",
]

# Plain lines appear each time this share of the work is done.
PLAIN_LINE_PERCENT = 10

Clock = Callable[[], float]
T = TypeVar("T")


class Progress(Protocol):
    """A display of how much of some work is done; a context manager that closes it."""

    def update(self, completed: float, state: str | None = None) -> None:
        """Show that ``completed`` units are done; without a ``state`` the units per second."""

    def advance(self) -> None:
        """Show that one more unit is done."""

    def say(self, line: str) -> None:
        """Print a line without disturbing the display."""

    def close(self) -> None:
        """Release the terminal; may be called more than once."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None: ...


class SilentProgress:
    """A display that shows nothing, for ranks that do not print; the base of the others."""

    def update(self, completed: float, state: str | None = None) -> None:
        """Show nothing."""

    def advance(self) -> None:
        """Show nothing."""

    def say(self, line: str) -> None:
        """Print nothing."""

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()


class LinesProgress(SilentProgress):
    """A display of nothing but the lines that are said, for work that reports its progress in them.

    Args:
        console: where lines go.
    """

    def __init__(self, console: Console) -> None:
        self._console = console

    def say(self, line: str) -> None:
        # Text of others, such as Megatron's log line: brackets are not markup, long lines are not cut.
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _CountingProgress(LinesProgress):
    """Counts what is done and estimates the time left, for the displays that show something."""

    def __init__(self, console: Console, *, total: float, completed: float, clock: Clock) -> None:
        super().__init__(console)
        self._completed = completed
        self._time = TimeLeft(completed, total, clock)

    def advance(self) -> None:
        self.update(self._completed + 1)

    def _describe(self, completed: float, state: str | None) -> str:
        self._completed = completed
        rate, left = self._time.rate(completed), self._time.seconds_left(completed)
        shown = state if state is not None else "" if rate is None else f"{rate:,.2f}/s"
        parts = [shown, "" if left is None else f"{render_duration(left)} left"]
        return " | ".join(part for part in parts if part)


class BarProgress(_CountingProgress):
    """A moving bar for terminals.

    Args:
        console: the terminal.
        description: of the work, a word or two.
        total, completed: units of work, and how many of them are done already.
        is_kept: leave the bar on the terminal when the work is done.
        clock: seconds.
    """

    def __init__(
        self,
        console: Console,
        description: str,
        *,
        total: float,
        completed: float = 0,
        is_kept: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(console, total=total, completed=completed, clock=clock)
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}", markup=False),
        )
        self._bar = RichProgress(
            *columns,
            console=console,
            expand=True,
            refresh_per_second=4,
            transient=not is_kept,
            # Results in a file or a pipe are no business of a terminal's bar.
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
        )
        self._task = self._bar.add_task(description, total=total, state="starting")
        self._bar.update(self._task, completed=completed)
        self._bar.start()

    def update(self, completed: float, state: str | None = None) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=completed, state=self._describe(completed, state))

    def close(self) -> None:
        """Stop drawing, so that what is printed next starts on a line of its own."""
        self._bar.stop()


class PlainProgress(_CountingProgress):
    """A line for each tenth of the work, for log files.

    Args:
        console: where lines go.
        description: of the work, a word or two.
        total, completed: units of work, and how many of them are done already.
        interval_seconds: print a line after this time as well.
        clock: seconds.
    """

    def __init__(
        self,
        console: Console,
        description: str,
        *,
        total: float,
        completed: float = 0,
        interval_seconds: float = math.inf,
        clock: Clock = time.monotonic,
    ) -> None:
        super().__init__(console, total=total, completed=completed, clock=clock)
        self._description = description
        self._total = total
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._shown_tenths = self._tenths(completed)
        self._shown_at = clock()

    def update(self, completed: float, state: str | None = None) -> None:
        """Print a line if one is due."""
        described = self._describe(completed, state)
        now = self._clock()
        is_due = now - self._shown_at >= self._interval_seconds
        if self._tenths(completed) <= self._shown_tenths and not is_due:
            return
        self._shown_tenths, self._shown_at = self._tenths(completed), now
        self.say(f"{self._description} {self._percent(completed):3.0f}% | {described}")

    def _percent(self, completed: float) -> int:
        return int(100 * completed // self._total) if self._total else 100

    def _tenths(self, completed: float) -> int:
        return self._percent(completed) // PLAIN_LINE_PERCENT


class TimeLeft:
    """Estimate the rate and the time left from the speed since this process began."""

    def __init__(self, start: float, total: float, clock: Clock = time.monotonic) -> None:
        self._start, self._total, self._clock = start, total, clock
        self._started = clock()

    def rate(self, completed: float) -> float | None:
        """Return units per second; None before the first is done."""
        done, elapsed = completed - self._start, self._clock() - self._started
        return done / elapsed if done > 0 and elapsed > 0 else None

    def seconds_left(self, completed: float) -> float | None:
        """Return the seconds left; None before the first unit is done."""
        done = completed - self._start
        if done <= 0:
            return None
        return (self._clock() - self._started) / done * (self._total - completed)


def open_progress(
    console: Console,
    description: str,
    *,
    total: float,
    completed: float = 0,
    is_kept: bool = False,
    interval_seconds: float = math.inf,
    clock: Clock = time.monotonic,
) -> Progress:
    """Return a bar on a terminal and plain lines elsewhere; see there for the arguments."""
    if console.is_terminal:
        return BarProgress(
            console, description, total=total, completed=completed, is_kept=is_kept, clock=clock
        )
    return PlainProgress(
        console,
        description,
        total=total,
        completed=completed,
        interval_seconds=interval_seconds,
        clock=clock,
    )


def open_bar(description: str, *, total: float, speaks: bool = True) -> Progress:
    """Return a bar on standard error that is removed when the work is done; nothing without a terminal.

    Args:
        description: of the work, a word or two.
        total: units of work.
        speaks: False for ranks other than the first.
    """
    console = open_console(stderr=True)
    if not (speaks and console.is_terminal):
        return SilentProgress()
    return BarProgress(console, description, total=total)


def tracked(items: Iterable[T], progress: Progress) -> Iterator[T]:
    """Yield items, and count each as done when the next one is asked for."""
    for item in items:
        yield item
        progress.advance()


def render_duration(seconds: float) -> str:
    """Render a duration as ``2 h 05 min``, ``3 min 20 s`` or ``12 s``."""
    rounded = round(seconds)
    if rounded >= 3600:
        return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"
    if rounded >= 60:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded} s"
