import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster.workflow.marker import Marker, load_marker, save_marker
from cluster.workflow.set_aside import set_aside, starts_from_scratch
from cluster.workflow.todo import StepState
from pipeline.config.load import build_config
from pipeline.config.workflow_section import ExportStep, TrainStep
from pipeline.shared.errors import ClusterError
from tests.unit.pipeline.config.settings import changed_settings

SETTINGS = {"optimizer.lr": 1e-3, "training.train_iters": 100}
MARKER = Marker(
    step="train",
    arguments=("train",),
    settings=SETTINGS,
    inputs={"data": "one"},
    job="first",
    started_at=datetime.now(UTC),
)
STATE = StepState(
    name="train", needs=(), settings=SETTINGS, inputs={"data": "one"}, output=None, marker=MARKER
)


def test_a_training_resumes_from_its_own_checkpoints_and_continues_a_shorter_one() -> None:
    longer = {**SETTINGS, "training.train_iters": 200}
    assert not starts_from_scratch(replace(STATE, marker=None), job="second", again=True)
    assert not starts_from_scratch(STATE, job="second", again=False)
    assert not starts_from_scratch(replace(STATE, settings=longer), job="second", again=False)


def test_a_training_with_other_settings_or_data_starts_from_scratch() -> None:
    other = {**SETTINGS, "optimizer.lr": 2e-3}
    assert starts_from_scratch(replace(STATE, settings=other), job="second", again=False)
    assert starts_from_scratch(replace(STATE, inputs={"data": "two"}), job="second", again=False)


def test_a_requested_step_starts_from_scratch_once_and_not_after_every_preemption() -> None:
    assert starts_from_scratch(STATE, job="second", again=True)
    assert not starts_from_scratch(STATE, job="first", again=True)


def test_an_old_training_is_kept_under_other_names(tmp_path: Path) -> None:
    config = build_config(changed_settings(output_dir=str(tmp_path)))
    (tmp_path / "checkpoints" / "iter_0000001").mkdir(parents=True)
    for name in ("metrics.jsonl", "history.jsonl"):
        (tmp_path / name).write_text("{}")
    set_aside(config, TrainStep(command="train"), MARKER, None)
    assert not (tmp_path / "checkpoints").exists()
    assert len(list(tmp_path.glob("checkpoints.until-*/iter_0000001"))) == 1
    for name in ("metrics.jsonl", "history.jsonl"):
        assert not (tmp_path / name).exists()
        assert len(list(tmp_path.glob(f"{name}.until-*"))) == 1


def test_only_an_export_that_the_step_has_written_is_removed(tmp_path: Path) -> None:
    config = build_config(changed_settings(output_dir=str(tmp_path)))
    step = ExportStep(command="export")
    exported = tmp_path / "export"
    exported.mkdir()
    set_aside(config, step, MARKER.ended(0, "as written"), "changed by hand")
    assert exported.exists()
    set_aside(config, step, MARKER.ended(0, "as written"), "as written")
    assert not exported.exists()


def test_a_marker_is_read_back_equal_and_a_damaged_one_is_reported(tmp_path: Path) -> None:
    assert load_marker(tmp_path, "train") is None
    ended = MARKER.ended(0, "made")
    save_marker(tmp_path, ended)
    assert load_marker(tmp_path, "train") == ended
    (tmp_path / "workflow" / "train.json").write_text("{}")
    with pytest.raises(ClusterError, match=r"train\.json"):
        load_marker(tmp_path, "train")


def test_the_marker_of_an_earlier_version_is_found(tmp_path: Path) -> None:
    content = json.loads(MARKER.model_dump_json())
    content["stage"] = content.pop("step")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "train.json").write_text(json.dumps(content))
    assert load_marker(tmp_path, "train") == MARKER
    newer = MARKER.ended(0, "output")
    save_marker(tmp_path, newer)
    assert load_marker(tmp_path, "train") == newer
