"""How far a run is: a moving bar on a terminal, a few plain lines everywhere else."""

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

# Plain lines appear each time this share of the run is done.
PLAIN_LINE_PERCENT = 10


class TrainingProgress(Protocol):
    """Something that shows how far a run is."""

    def update(self, iteration: int, *, loss: float, tokens_per_second: float) -> None:
        """Show the state after ``iteration``."""

    def say(self, line: str) -> None:
        """Write a line of the log without disturbing what is shown."""

    def close(self) -> None:
        """Stop showing."""


class NoProgress:
    """Shows nothing: for the ranks that do not speak."""

    def update(self, iteration: int, *, loss: float, tokens_per_second: float) -> None:
        """Do nothing."""

    def say(self, line: str) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class BarProgress:
    """A moving bar with loss, speed and time left."""

    def __init__(self, console: Console, *, start_iteration: int, total_iterations: int) -> None:
        """Begin at ``start_iteration`` of ``total_iterations``."""
        self._clock = RemainingTime(start_iteration, total_iterations)
        columns = (
            TextColumn("training"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}"),
        )
        self._progress = Progress(*columns, console=console, expand=True, refresh_per_second=4)
        self._task = self._progress.add_task(
            "training", total=total_iterations, completed=start_iteration, state="starting"
        )
        self._progress.start()

    def update(self, iteration: int, *, loss: float, tokens_per_second: float) -> None:
        """Move the bar."""
        state = render_state(loss, tokens_per_second, self._clock.seconds_left(iteration))
        self._progress.update(self._task, completed=iteration, state=state)

    def say(self, line: str) -> None:
        """Write the line above the bar."""
        _print_as_is(self._progress.console, line)

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        self._progress.stop()


class PlainProgress:
    """One line for each tenth of the run."""

    def __init__(self, *, start_iteration: int, total_iterations: int, emit: Callable[[str], None]) -> None:
        """Begin at ``start_iteration`` of ``total_iterations`` and send lines to ``emit``."""
        self._clock = RemainingTime(start_iteration, total_iterations)
        self._total = total_iterations
        self._emit = emit
        self._shown = self._tenths(start_iteration)

    def update(self, iteration: int, *, loss: float, tokens_per_second: float) -> None:
        """Write a line if another tenth of the run is done."""
        if self._tenths(iteration) <= self._shown:
            return
        self._shown = self._tenths(iteration)
        state = render_state(loss, tokens_per_second, self._clock.seconds_left(iteration))
        self._emit(f"training {100 * iteration // self._total:3d}% ({iteration}/{self._total}) {state}")

    def say(self, line: str) -> None:
        """Write the line."""
        self._emit(line)

    def close(self) -> None:
        """Nothing is held open."""

    def _tenths(self, iteration: int) -> int:
        return 100 * iteration // (self._total * PLAIN_LINE_PERCENT)


class RemainingTime:
    """Estimate the time left from the speed since this process began."""

    def __init__(
        self, start_iteration: int, total_iterations: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start the clock."""
        self._start, self._total, self._clock = start_iteration, total_iterations, clock
        self._started = clock()

    def seconds_left(self, iteration: int) -> float | None:
        """Return the seconds to go; None before the first iteration is done."""
        done = iteration - self._start
        if done <= 0:
            return None
        return (self._clock() - self._started) / done * (self._total - iteration)


def open_progress(console: Console, *, start_iteration: int, total_iterations: int) -> TrainingProgress:
    """Choose the bar on a terminal and plain lines elsewhere."""
    if console.is_terminal:
        return BarProgress(console, start_iteration=start_iteration, total_iterations=total_iterations)
    return PlainProgress(
        start_iteration=start_iteration,
        total_iterations=total_iterations,
        emit=partial(_print_as_is, console),
    )


def render_state(loss: float, tokens_per_second: float, seconds_left: float | None) -> str:
    """Write loss, speed and time left in one short line."""
    left = "" if seconds_left is None else f" | {render_duration(seconds_left)} left"
    return f"loss {loss:.4f} | {tokens_per_second:,.0f} tokens/s{left}"


def render_duration(seconds: float) -> str:
    """Write a duration as ``2 h 05 min``, ``3 min 20 s`` or ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    if whole >= 60:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole} s"


def _print_as_is(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
