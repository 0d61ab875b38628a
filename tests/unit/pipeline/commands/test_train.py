from pathlib import Path

from typer.testing import CliRunner

from pipeline import cli
from pipeline.shared.exit_codes import ExitCode

RECIPE = Path(__file__).parents[4] / "pipeline" / "recipes" / "tiny_ponderlm.yaml"


def test_the_schedule_is_shown_and_nothing_is_started(tmp_path: Path) -> None:
    arguments = ["train", "--config", str(RECIPE), "--show-schedule", f"output_dir={tmp_path / 'run'}"]
    result = CliRunner().invoke(cli.app, [*arguments, "parallel.pipeline=2", "micro-batch-size=2"])

    assert result.exit_code == ExitCode.DONE, result.output
    assert "stage 1 ..a0" in result.stdout
    assert "passes as virtual stages" in result.stdout
    assert not (tmp_path / "run").exists()
