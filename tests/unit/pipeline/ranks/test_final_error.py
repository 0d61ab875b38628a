from pathlib import Path

import pytest

from pipeline.ranks.final_error import FINAL_ERROR_VARIABLE, FinalError, note_final_error, read_final_error


def test_an_error_is_left_with_its_code_and_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "final"
    monkeypatch.setenv(FINAL_ERROR_VARIABLE, str(file))
    assert read_final_error(file) is None

    note_final_error(93, "rank 3: no memory\nand a table")

    assert read_final_error(file) == FinalError(exit_code=93, reason="rank 3: no memory")
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_without_a_launcher_that_restarts_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(FINAL_ERROR_VARIABLE, raising=False)
    note_final_error(93, "rank 3")
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_or_read_hides_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FINAL_ERROR_VARIABLE, str(tmp_path / "absent" / "final"))
    note_final_error(93, "rank 3")
    (tmp_path / "final").write_text("no code\n")
    assert read_final_error(tmp_path / "final") is None
