import io

import pytest
from rich.console import Console

from pipeline.shared.progress import (
    BarProgress,
    PlainProgress,
    SilentProgress,
    TimeLeft,
    open_bar,
    open_progress,
    render_duration,
)


class Clock:
    """A clock that tests set."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def _file_console() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=20), file


def _terminal() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, force_terminal=True, width=120), file


def test_plain_progress_prints_one_line_per_tenth() -> None:
    console, file = _file_console()
    progress = PlainProgress(console, "training", total=40)
    for iteration in range(1, 41):
        progress.update(iteration, f"state {iteration}")
    progress.close()
    lines = file.getvalue().splitlines()
    assert [line.split(" | ")[0] for line in lines] == [f"training {10 * n:3d}%" for n in range(1, 11)]
    assert [line.split(" | ")[1] for line in lines] == [f"state {4 * n}" for n in range(1, 11)]
    assert "\x1b" not in file.getvalue()


def test_work_that_is_resumed_does_not_repeat_lines() -> None:
    console, file = _file_console()
    progress = PlainProgress(console, "training", total=40, completed=20)
    progress.update(21)
    progress.update(24)
    assert [line.split("%")[0] for line in file.getvalue().splitlines()] == ["training  60"]


def test_plain_lines_also_appear_after_the_interval() -> None:
    (console, file), clock = _file_console(), Clock()
    progress = PlainProgress(console, "work", total=1000, interval_seconds=5.0, clock=clock)
    for number in range(1, 10):
        clock.seconds += 2.0
        progress.update(number)
    assert [int(line.split()[1][:-1]) for line in file.getvalue().splitlines()] == [0, 0, 0]


def test_every_display_shows_rate_and_time_left() -> None:
    for open_console in (_file_console, _terminal):
        (console, file), clock = open_console(), Clock()
        with open_progress(console, "work", total=10, clock=clock) as progress:
            clock.seconds += 2.0
            progress.advance()
        assert "0.50/s" in file.getvalue()
        assert "18 s" in file.getvalue()


def test_a_terminal_gets_a_bar_and_anything_else_plain_lines() -> None:
    terminal, _ = _terminal()
    with open_progress(terminal, "work", total=10) as bar:
        bar.update(5)
    assert isinstance(bar, BarProgress)
    console, file = _file_console()
    plain = open_progress(console, "work", total=10)
    plain.say(" [2026-01-02 03:04:05] a long line of the log |")
    assert isinstance(plain, PlainProgress)
    assert file.getvalue() == " [2026-01-02 03:04:05] a long line of the log |\n"


def test_log_lines_are_printed_beside_a_bar_as_they_are() -> None:
    terminal, file = _terminal()
    with open_progress(terminal, "work", total=10) as bar:
        bar.say("a [b] line")
    assert "a [b] line" in file.getvalue()


def test_a_bar_may_be_closed_twice() -> None:
    bar = BarProgress(_terminal()[0], "work", total=1)
    bar.advance()
    bar.close()
    bar.close()


def test_ranks_that_are_silent_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for progress in (SilentProgress(), open_bar("work", total=2, speaks=False)):
        with progress:
            progress.update(1, "state")
            progress.advance()
            progress.say("line")
    assert capsys.readouterr() == ("", "")


def test_work_without_units_is_done() -> None:
    console, file = _file_console()
    PlainProgress(console, "work", total=0, interval_seconds=0.0).update(0, "state")
    assert "100%" in file.getvalue()


def test_time_left_follows_the_speed_since_the_start() -> None:
    clock = Clock()
    remaining = TimeLeft(10, 40, clock)
    assert remaining.seconds_left(10) is None
    assert remaining.rate(10) is None
    clock.seconds += 20.0
    assert remaining.seconds_left(20) == 40.0
    assert remaining.rate(20) == 0.5


@pytest.mark.parametrize(
    ("seconds", "text"), [(11.6, "12 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (59.7, "1 min 00 s")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert render_duration(seconds) == text
