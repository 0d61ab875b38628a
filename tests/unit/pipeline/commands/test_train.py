import subprocess
import sys
from pathlib import Path

RECIPE = Path(__file__).parents[4] / "pipeline" / "recipes" / "tiny_ponderlm.yaml"


def test_the_schedule_is_shown_and_nothing_is_started(tmp_path: Path) -> None:
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pipeline.cli", "train", "--config", str(RECIPE), "--show-schedule"),
            *("parallel.pipeline=2", "micro-batch-size=2", f"output_dir={tmp_path / 'run'}"),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert "stage 1 ..a0" in result.stdout
    assert "passes as virtual stages" in result.stdout
    assert not (tmp_path / "run").exists()
