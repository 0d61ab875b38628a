import io
import logging
from collections.abc import Iterator

import pytest
from rich.console import Console

from pipeline.commands.shared import (
    NOTICES_LOGGER,
    examples,
    exit_on_user_error,
    report_notices_once,
    set_up_logging,
)
from pipeline.config import aliases
from pipeline.shared.errors import CheckpointError
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.progress import BarProgress


@pytest.fixture
def notices() -> Iterator[logging.Logger]:
    logger = logging.getLogger(NOTICES_LOGGER)
    level = logger.level
    yield logger
    logger.setLevel(level)


def started_as(monkeypatch: pytest.MonkeyPatch, rank: int | None) -> None:
    variables = {"WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "RANK": str(rank)}
    for name, value in variables.items():
        if rank is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("rank", "is_reported"), [(None, True), (0, True), (1, False)])
def test_the_first_rank_alone_reports_an_error(
    rank: int | None, is_reported: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started_as(monkeypatch, rank)

    with pytest.raises(SystemExit) as caught, exit_on_user_error():
        raise CheckpointError("iter_0000010")

    assert caught.value.code == ExitCode.DO_NOT_REQUEUE
    assert ("iter_0000010" in capsys.readouterr().err) == is_reported


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_user_error():
        _ = 1 // 0


@pytest.mark.parametrize(("rank", "is_reported"), [(None, True), (0, True), (3, False)])
def test_the_first_rank_alone_reports_renamed_settings(
    rank: int | None, is_reported: bool, monkeypatch: pytest.MonkeyPatch, notices: logging.Logger
) -> None:
    started_as(monkeypatch, rank)

    report_notices_once()

    assert aliases.logger.name.startswith(f"{notices.name}.")
    assert notices.isEnabledFor(logging.WARNING) == is_reported


def test_inconsistent_variables_of_a_launcher_are_left_to_the_command(
    monkeypatch: pytest.MonkeyPatch, notices: logging.Logger
) -> None:
    started_as(monkeypatch, None)
    monkeypatch.setenv("RANK", "1")

    report_notices_once()

    assert notices.isEnabledFor(logging.WARNING)


def test_every_example_is_a_paragraph_of_its_own() -> None:
    assert examples("megaponder a", "megaponder b").split("\n\n")[1:] == ["megaponder a", "megaponder b"]


def test_the_log_appears_above_a_bar_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    before, terminal = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", before)
    set_up_logging()
    with BarProgress(Console(file=terminal, force_terminal=True, width=120), "work", total=10) as bar:
        bar.update(5)
        logging.getLogger("any").warning("the message")
    assert before.getvalue() == ""
    line = next(line for line in terminal.getvalue().splitlines() if "the message" in line)
    assert "work" not in line.rsplit("\x1b[2K", 1)[-1]
