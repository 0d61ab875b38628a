"""Limits and budgets of `megaponder eval` and `generate` on a trained run."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.commands import megaponder
from tests.support.tiny_run import TrainedRun

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]


def test_a_budget_is_met_stored_and_used_again(trained: TrainedRun, tmp_path: Path) -> None:
    run, result, lines = tmp_path / "run", tmp_path / "result.json", tmp_path / "texts.jsonl"
    shutil.copytree(trained.folder, run)
    checkpoints = run / "checkpoints"

    command = megaponder("eval", str(checkpoints), "--budget", "1.5", "--output", str(result))

    assert command.exit_code == 0, command.stderr
    evaluation = json.loads(result.read_text())
    (stored,) = json.loads((run / "budgets.json").read_text())["budgets"]
    steps = sum(number * count for number, count in enumerate(evaluation["steps_count"]))
    assert evaluation["prunes"]
    assert evaluation["budget"] == stored["budget"] == "1.5"
    assert evaluation["pruning_threshold"] == stored["threshold"]
    assert evaluation["loss"] == pytest.approx(stored["loss"], rel=1e-6)
    assert steps / sum(evaluation["steps_count"]) == pytest.approx(stored["mean_steps"])
    assert stored["mean_steps"] <= 1.5
    assert [speed["batch_size"] for speed in evaluation["speeds"]] == [1, 8]
    assert all(speed["milliseconds_per_token"] > 0 for speed in evaluation["speeds"])

    # Generation takes the stored threshold: at one above all tail masses no token takes a step.
    file = run / "budgets.json"
    file.write_text(file.read_text().replace(str(stored["threshold"]), "2.0"))
    command = megaponder(
        "generate", str(checkpoints), "--budget", "1.5", "--json-lines", str(lines), "--max-new-tokens", "8"
    )

    assert command.exit_code == 0, command.stderr
    assert set(json.loads(lines.read_text())["steps"]) == {0}


def test_steps_are_limited_in_generation(trained: TrainedRun, tmp_path: Path) -> None:
    lines = tmp_path / "texts.jsonl"
    options = ["--max-steps", "1", "--threshold", "0", "--json-lines", str(lines), "--max-new-tokens", "8"]

    command = megaponder("generate", str(trained.checkpoints), *options)

    assert command.exit_code == 0, command.stderr
    assert set(json.loads(lines.read_text())["steps"]) == {1}


@pytest.mark.parametrize(
    "options", [["--max-steps", "3"], ["--budget", "much"], ["--budget", "1", "--threshold", "0.5"]]
)
@pytest.mark.parametrize("command", ["generate", "eval"])
def test_limits_that_a_router_cannot_have_are_refused(
    trained: TrainedRun, command: str, options: list[str]
) -> None:
    found = megaponder(command, str(trained.checkpoints), *options)

    assert found.exit_code == 2
    assert options[0] in found.stderr
