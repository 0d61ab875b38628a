"""`megaponder compare` on two copies of a trained run."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.commands import megaponder
from tests.support.runs import NUM_ITERATIONS, written_events
from tests.support.tiny_run import TrainedRun

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]


def test_runs_are_compared_by_loss_and_cost(trained: TrainedRun, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(trained.folder, tmp_path / name)
    plot, figures = tmp_path / "plot.png", tmp_path / "figures.json"
    options = ["--threshold", "0.0", "--threshold", "0.89", "--output", str(plot), "--json", str(figures)]
    options += ["--budget", "1", "--max-steps", "1", "--max-steps", "3"]

    command = megaponder("compare", str(tmp_path / "first"), str(tmp_path / "second"), *options)

    assert command.exit_code == 0, command.stderr
    assert plot.read_bytes().startswith(b"\x89PNG")
    first, second = json.loads(figures.read_text())["runs"]
    assert first["label"] == str(tmp_path / "first")
    assert first["iteration"] == NUM_ITERATIONS
    # Both runs have the same weights.
    assert [point["loss"] for point in second["points"]] == [point["loss"] for point in first["points"]]
    # A router of two steps cannot take three.
    whole, pruned, limited, spent = first["points"]
    (by_entropy,) = first["baseline"]
    assert limited["step_limit"] == 1
    assert (spent["budget"], by_entropy["budget"], by_entropy["signal"]) == ("1", "1", "entropy")
    assert max(spent["mean_steps"], by_entropy["mean_steps"]) <= 1
    for point in (whole, pruned, limited, spent, by_entropy):
        assert [speed["batch_size"] for speed in point["speeds"]] == [1, 8]
    assert whole["speeds"][0]["gain_reached"] is None
    (measured,) = written_events(trained.folder, "validation")
    # Without pruning the hard mask is the soft one.
    assert whole["loss"] == pytest.approx(measured["lm loss validation"], rel=1e-5)
    assert whole["mean_steps"] == 2.0
    assert 0 <= pruned["mean_steps"] < 2.0
    assert pruned["flops_per_token"] < whole["flops_per_token"]

    # A second comparison reads the recorded points instead of evaluating: a changed record shows.
    for curve in (tmp_path / "first").rglob("pruning_curve.json"):
        curve.write_text(curve.read_text().replace(str(pruned["loss"]), "7.5"))

    again = megaponder("compare", str(tmp_path / "first"), *options)

    assert again.exit_code == 0, again.stderr
    assert json.loads(figures.read_text())["runs"][0]["points"][1]["loss"] == 7.5


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    command = megaponder("compare", str(tmp_path))

    assert command.exit_code == 2
    assert str(tmp_path) in command.stderr
