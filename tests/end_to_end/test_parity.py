"""`megaponder parity` on a layout of four ranks, and the files it leaves."""

import json
from pathlib import Path

import pytest

from tests.support.commands import megaponder

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]


def test_a_layout_trains_like_one_process(recipe: Path, tmp_path: Path) -> None:
    record, output = tmp_path / "parity.json", tmp_path / "run"
    command = megaponder(
        *(
            "parity",
            "--config",
            str(recipe),
            "--layout",
            "tensor=2,pipeline=2",
            "--steps",
            "3",
            "--json",
            str(record),
        ),
        *("micro-batch-size=2", "lr-warmup-iters=0", f"output_dir={output}"),
    )

    assert command.exit_code == 0, command.stderr
    assert "one process and tensor=2,pipeline=2,data=1, fp32" in command.stdout
    assert command.stdout.count("inside") >= 3
    steps = json.loads(record.read_text())["steps"]
    assert len(steps) == 3
    # These are two trainings: the weights move, and sums over ranks round differently.
    losses = [step["one_process"]["loss"] for step in steps]
    assert len(set(losses)) == 3
    assert any(step["grad_norm_difference"] > 0 for step in steps)
    assert list(tmp_path.iterdir()) == [record]


def test_missing_data_are_one_error_without_a_traceback(recipe: Path, tmp_path: Path) -> None:
    command = megaponder(
        *("parity", "--config", str(recipe), "--layout", "tp=2", f"data.path={tmp_path / 'nowhere'}")
    )

    assert command.exit_code == 2
    assert command.stderr.count("error: ") == 1
    assert "Traceback" not in command.stderr
