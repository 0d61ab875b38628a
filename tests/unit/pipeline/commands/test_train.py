import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.folder_lock import FolderInUseError, folder_lock
from tests.unit.pipeline.run.test_inputs import write_data

RECIPE = Path(__file__).parents[4] / "pipeline" / "recipes" / "tiny_ponderlm.yaml"


def test_the_schedule_is_shown_and_nothing_is_started(tmp_path: Path) -> None:
    arguments = ["train", "--config", str(RECIPE), "--show-schedule", f"output_dir={tmp_path / 'run'}"]
    result = CliRunner().invoke(cli.app, [*arguments, "parallel.pipeline=2", "micro-batch-size=2"])

    assert result.exit_code == ExitCode.DONE, result.output
    assert "stage 1 ..a0" in result.stdout
    assert "passes as virtual stages" in result.stdout
    assert not (tmp_path / "run").exists()


def test_a_second_training_is_refused_before_it_starts_or_writes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    data = write_data(tmp_path / "data")
    arguments = [
        "train",
        "--config",
        str(RECIPE),
        f"output_dir={run}",
        f"data.path={data}",
        "parallel.data=2",
    ]
    with folder_lock(run, "megaponder train"):
        monkeypatch.delenv("MEGAPONDER_LOCK_TOKENS")
        result = CliRunner().invoke(cli.app, arguments)
        assert isinstance(result.exception, FolderInUseError)
        assert str(os.getpid()) in str(result.exception)
        assert [path.name for path in run.iterdir()] == [".lock"]
