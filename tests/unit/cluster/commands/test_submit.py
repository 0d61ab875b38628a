from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline import cli
from pipeline.config.errors import ConfigError
from pipeline.shared.errors import ClusterError, DataError
from tests.support.workflow import write_pipeline


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a run with steps, of which none has run."""
    return write_pipeline(tmp_path_factory.mktemp("pipeline"))


def submit(config: Path, *words: str) -> Result:
    return CliRunner().invoke(cli.app, ["submit", "--config", str(config), *words], env={"COLUMNS": "200"})


def test_a_dry_run_shows_every_step_with_what_it_waits_for_and_writes_nothing(pipeline: Path) -> None:
    result = submit(pipeline, "--dry-run")
    assert result.exit_code == 0, result.output
    scripts = result.stdout.split("#!/bin/bash")[1:]
    assert [script.split()[1] for script in scripts] == [
        "tiny-prepare:",
        "tiny-train:",
        "tiny-evaluate:",
        "tiny-export:",
    ]
    assert "--after local:prepare" in scripts[1]
    assert "--after local:train" in scripts[3]
    assert "has not run" in result.stderr
    assert not (pipeline.parent / "runs").exists()


def test_one_step_alone_is_considered(pipeline: Path) -> None:
    result = submit(pipeline, "--dry-run", "--only", "prepare")
    assert result.stdout.count("#!/bin/bash") == 1
    assert isinstance(submit(pipeline, "--only", "trian").exception, ClusterError)


def test_a_step_whose_input_is_missing_is_refused(pipeline: Path) -> None:
    result = submit(pipeline, "--only", "evaluate")
    assert isinstance(result.exception, ConfigError)
    assert [problem.path for problem in result.exception.problems] == ["workflow"]
    result = submit(pipeline, "--only", "train")
    assert isinstance(result.exception, ConfigError)
    assert [problem.path for problem in result.exception.problems] == ["data.path"]


def test_missing_text_and_tokenizers_are_found_before_anything_is_queued(
    pipeline: Path, tmp_path: Path
) -> None:
    settings = yaml.safe_load(pipeline.read_text())
    settings["workflow"][0]["tokenizer"] = str(tmp_path / "absent.model")
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump(settings))
    assert "absent.model" in str(submit(changed).exception)
    settings["workflow"][0]["inputs"] = [str(tmp_path / "absent")]
    changed.write_text(yaml.safe_dump(settings))
    assert isinstance(submit(changed).exception, DataError)
    assert not (pipeline.parent / "runs").exists()


def test_choices_of_steps_need_steps_and_sweeps_none(pipeline: Path) -> None:
    assert isinstance(submit(pipeline, "workflow=null", "--from", "train").exception, ClusterError)
    assert isinstance(submit(pipeline, "--sweep", "seed=1,2").exception, ClusterError)


def test_a_run_that_cannot_be_submitted_leaves_nothing_behind(pipeline: Path) -> None:
    result = submit(pipeline, "--only", "prepare", "--after", "local:nothing")
    assert "local:nothing" in str(result.exception)
    assert not (pipeline.parent / "runs" / "tiny").exists()
