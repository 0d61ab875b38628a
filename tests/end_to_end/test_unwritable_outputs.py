"""Trainings whose outputs cannot be written: one error with its exit code, and nothing half-written."""

import subprocess
from pathlib import Path

import pytest

from pipeline.checkpoint.tracker import latest_iteration
from tests.support.commands import Finished, megaponder
from tests.support.runs import one_rank
from tests.support.small_disk import small_disk

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]


def assert_is_refused(command: Finished, exit_code: int) -> None:
    assert command.exit_code == exit_code, command.stderr
    assert "Traceback" not in command.stderr
    assert command.stderr.count("error: ") == 1, command.stderr


@pytest.mark.parametrize("setting", ["output_dir", "checkpoint.directory"])
def test_a_file_in_the_way_is_refused(recipe: Path, tmp_path: Path, setting: str) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("text")
    settings = one_rank(tmp_path / "run", f"{setting}={occupied}/x")
    assert_is_refused(megaponder("train", "--config", str(recipe), *settings), 2)
    assert occupied.read_text() == "text"


def test_a_read_only_disk_is_refused(recipe: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size="1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert_is_refused(megaponder("train", "--config", str(recipe), *one_rank(disk / "run")), 2)


@pytest.mark.parametrize("size", ["4k", "12k", "20k", "300k"])
def test_a_disk_that_is_full_at_any_output_ends_the_run_with_its_code(
    recipe: Path, tmp_path: Path, size: str
) -> None:
    with small_disk(tmp_path / "disk", size=size) as disk:
        command = megaponder(
            "train", "--config", str(recipe), *one_rank(disk / "run", "checkpoint.interval=2")
        )
        assert_is_refused(command, 93)
        assert latest_iteration(disk / "run" / "checkpoints") is None
