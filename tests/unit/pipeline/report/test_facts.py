import json
from pathlib import Path

from pipeline.config.load import load_config
from pipeline.report.facts import further_commands, step_seconds

RECIPE = Path(__file__).parents[4] / "pipeline" / "recipes" / "demo.yaml"


def write_marker(run: Path, step: str, started: str, finished: str | None) -> None:
    folder = run / "workflow"
    folder.mkdir(exist_ok=True)
    marker = {"step": step, "started_at": started, "finished_at": finished}
    (folder / f"{step}.json").write_text(json.dumps(marker))


def test_times_are_those_of_finished_steps_in_their_order(tmp_path: Path) -> None:
    assert step_seconds(tmp_path) == []
    write_marker(tmp_path, "train", "2026-01-01T10:00:05Z", "2026-01-01T10:01:05Z")
    write_marker(tmp_path, "prepare", "2026-01-01T10:00:00Z", "2026-01-01T10:00:04.500000Z")
    write_marker(tmp_path, "report", "2026-01-01T10:02:00Z", None)
    assert step_seconds(tmp_path) == [("prepare", 4.5), ("train", 60.0)]


def test_further_commands_name_the_folders_of_the_run() -> None:
    config = load_config(RECIPE)
    lines = [command.line for command in further_commands(config, RECIPE)]
    assert any(str(config.checkpoint_directory) in line for line in lines)
    assert any(f"train-iters={2 * config.training.train_iters}" in line for line in lines)
