import json
import math
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from pipeline.config.errors import ConfigError
from pipeline.config.schema import RunConfig
from pipeline.shared.exit_codes import ExitCode
from pipeline.verification.parity.command import report, run_parity
from pipeline.verification.parity.compare import Measured, compare
from tests.unit.pipeline.config.settings import changed_settings, valid_settings


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(valid_settings()), encoding="utf-8")
    return file


def judged(found: Measured, json_file: Path) -> tuple[ExitCode, str]:
    config = RunConfig(**changed_settings(parallel__tensor=2))
    steps = compare(
        [Measured(loss=5.0, grad_norm=1.0)] * 2, [Measured(loss=5.0, grad_norm=1.0), found], precision="fp32"
    )
    console = Console(width=110)
    with console.capture() as captured:
        code = report(steps, config, json_file=json_file, console=console)
    return code, captured.get()


def test_inside_the_band_is_success(tmp_path: Path) -> None:
    code, text = judged(Measured(loss=5.0, grad_norm=1.000001), tmp_path / "parity.json")

    assert code == ExitCode.DONE
    assert "tensor=2,pipeline=1,data=1" in text
    record = json.loads((tmp_path / "parity.json").read_text())
    assert record["passes"] is True
    assert all(step["passes"] for step in record["steps"])


def test_a_step_outside_the_band_fails(tmp_path: Path) -> None:
    code, _ = judged(Measured(loss=5.0, grad_norm=1.1), tmp_path / "parity.json")

    assert code == ExitCode.CRASH
    record = json.loads((tmp_path / "parity.json").read_text())
    assert (record["passes"], record["layout"], record["precision"]) == (
        False,
        "tensor=2,pipeline=1,data=1",
        "fp32",
    )
    assert [step["passes"] for step in record["steps"]] == [True, False]
    assert record["steps"][1]["on_layout"] == {"loss": 5.0, "grad_norm": 1.1}


def test_what_is_not_a_number_is_null_in_json(tmp_path: Path) -> None:
    code, _ = judged(Measured(loss=math.nan, grad_norm=1.0), tmp_path / "parity.json")

    assert code == ExitCode.CRASH
    assert json.loads((tmp_path / "parity.json").read_text())["steps"][1]["on_layout"]["loss"] is None


def test_mistakes_in_layout_and_settings_are_reported_together(run_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_parity(run_file, "tp=3,pp=two", num_steps=1, overrides=["lr=0"])

    assert [problem.path for problem in caught.value.problems] == [
        "--layout",
        "optimizer.lr",
        "parallel.tensor",
    ]


def test_micro_batches_that_do_not_fit_the_stages_have_a_cure(run_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run_parity(run_file, "pp=2", num_steps=1, overrides=["training.global_batch_size=12"])

    (problem,) = caught.value.problems
    assert problem.path == "training.global_batch_size"
    assert "8 or 16" in problem.cure


@pytest.mark.parametrize("layout", [None, "tp=1", "dp=1,pp=1"])
def test_one_process_is_not_compared_with_itself(run_file: Path, layout: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        run_parity(run_file, layout, num_steps=1)

    assert [problem.path for problem in caught.value.problems] == ["--layout"]
