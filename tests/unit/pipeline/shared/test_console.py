import io
import logging
import sys

import pytest
from rich.control import strip_control_codes
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from pipeline.commands.shared import exit_on_user_error, set_up_logging
from pipeline.shared.console import open_console, printable, report_crashes, say
from pipeline.shared.errors import DataError
from pipeline.shared.progress import BarProgress, PlainProgress

# Clear the screen, set the title, a C1 control, a backspace, a carriage return, reordering, half a pair.
ATTACKS = (
    "\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "a\bb",
    "good\rbad",
    "\u202eabc",
    "caf\udce9",
    "\x00",
    "\x7f",
)
MARKUP = ("[/red]", "[bold]", "[link=http://x]y[/link]", ":smile:", "[/]", "\\[x]")
RAW = {chr(code) for code in (*range(9), *range(11, 32), *range(127, 160))} | {"\u202e", "\udce9"}


def raw_characters(text: str) -> set[str]:
    return RAW & set(text)


@pytest.mark.parametrize("attack", ATTACKS)
def test_control_characters_are_written_as_escapes(attack: str) -> None:
    assert not raw_characters(printable(f"before {attack} after"))
    assert printable(printable(attack)) == printable(attack)


@pytest.mark.parametrize("text", ["", "a\tb\nc\n", "caf\u00e9 \u4e16\u754c \U0001f600", "C:\\x1b", *MARKUP])
def test_other_text_is_unchanged(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("text", [*ATTACKS, *MARKUP])
@pytest.mark.parametrize("is_terminal", [False, True])
def test_the_console_shows_text_as_it_is_written(
    text: str, is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1" if is_terminal else "")
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    console = open_console(width=100)
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    for renderable in (text, Text(text), table, Panel(Text(text), title=Text(text)), Rule(text)):
        sys.stdout.seek(0)
        sys.stdout.truncate()
        console.print(renderable)
        shown = sys.stdout.getvalue()  # type: ignore[attr-defined]
        # Only rich's own styles are left.
        shown = "".join(
            part.partition("m")[2] if number else part for number, part in enumerate(shown.split("\x1b["))
        )
        assert not raw_characters(shown)
        # Rich itself removes some control characters.
        assert printable(strip_control_codes(text)) in shown


@pytest.mark.parametrize("text", ["\x1b[2J", "[/red]"])
def test_progress_shows_text_as_it_is_written(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with PlainProgress(open_console(stderr=True), text, total=1) as progress:
        progress.update(1, text)
        progress.say(text)
    assert not raw_characters(sys.stderr.getvalue())  # type: ignore[attr-defined]
    assert sys.stderr.getvalue().count(printable(text)) == 3  # type: ignore[attr-defined]
    with BarProgress(open_console(stderr=True), text, total=1) as bar:
        bar.update(1, text)


def test_say_prints_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[2J", nl=False)
    say("b\x9b", err=True)
    out, err = capsys.readouterr()
    assert (out, err) == ("a\\x1b[2J", "b\\x9b\n")


def test_say_needs_no_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    say("nobody")


def test_errors_crashes_and_logs_print_escapes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit), exit_on_user_error():
        raise DataError("no such file: \x1b[2J")
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    report_crashes()
    error = KeyError("name\x9b")
    sys.excepthook(KeyError, error, None)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    set_up_logging()
    logging.getLogger("pipeline.test").info("reading %s", "\x1b]0;x\x07")
    err = capsys.readouterr().err
    assert err.count("\\x") >= 3
    assert not raw_characters(err)


def test_a_rule_in_a_file_is_no_wider_than_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    open_console().rule(Text("train"), align="left")

    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("train ")
    assert len(line) == 80
