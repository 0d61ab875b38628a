import io

import pytest
from rich.console import Console

from pipeline.run.progress import (
    BarProgress,
    NoProgress,
    PlainProgress,
    RemainingTime,
    open_progress,
    render_duration,
    render_state,
)


def test_plain_progress_writes_one_line_per_tenth() -> None:
    lines: list[str] = []
    progress = PlainProgress(start_iteration=0, total_iterations=40, emit=lines.append)
    for iteration in range(1, 41):
        progress.update(iteration, loss=2.5, tokens_per_second=1234.0)
    progress.close()
    assert len(lines) == 10
    assert lines[0].startswith("training  10% (4/40) loss 2.5000 | 1,234 tokens/s | ")
    assert lines[-1].startswith("training 100% (40/40)")


def test_a_resumed_run_does_not_repeat_lines() -> None:
    lines: list[str] = []
    progress = PlainProgress(start_iteration=20, total_iterations=40, emit=lines.append)
    progress.update(21, loss=2.5, tokens_per_second=1.0)
    progress.update(24, loss=2.5, tokens_per_second=1.0)
    assert [line.split("(")[0] for line in lines] == ["training  60% "]


def test_a_terminal_gets_a_bar_and_anything_else_plain_lines() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True)
    bar = open_progress(terminal, start_iteration=0, total_iterations=10)
    bar.update(5, loss=1.5, tokens_per_second=100.0)
    bar.close()
    assert isinstance(bar, BarProgress)
    file = io.StringIO()
    plain = open_progress(Console(file=file, width=20), start_iteration=0, total_iterations=10)
    plain.say(" [2026-01-02 03:04:05] a long line of the log |")
    assert isinstance(plain, PlainProgress)
    assert file.getvalue() == " [2026-01-02 03:04:05] a long line of the log |\n"


def test_lines_of_the_log_stand_beside_the_progress() -> None:
    lines: list[str] = []
    PlainProgress(start_iteration=0, total_iterations=10, emit=lines.append).say("a [b] line")
    assert lines == ["a [b] line"]
    terminal = Console(file=io.StringIO(), force_terminal=True, width=60)
    bar = open_progress(terminal, start_iteration=0, total_iterations=10)
    bar.say("a [b] line")
    bar.close()
    assert isinstance(terminal.file, io.StringIO)
    assert "a [b] line" in terminal.file.getvalue()


def test_ranks_that_do_not_speak_show_nothing() -> None:
    silent = NoProgress()
    silent.update(1, loss=1.0, tokens_per_second=1.0)
    silent.say("line")
    silent.close()


def test_time_left_follows_the_speed_since_the_start() -> None:
    now = [100.0]
    remaining = RemainingTime(10, 40, lambda: now[0])
    assert remaining.seconds_left(10) is None
    now[0] = 120.0
    assert remaining.seconds_left(20) == 40.0


@pytest.mark.parametrize(
    ("seconds", "text"), [(11.6, "12 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (59.7, "1 min 00 s")]
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert render_duration(seconds) == text


def test_time_left_is_left_out_while_it_is_unknown() -> None:
    assert render_state(2.0, 10.0, None) == "loss 2.0000 | 10 tokens/s"
