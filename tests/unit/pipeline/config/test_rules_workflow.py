import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.config_file import parse_yaml, render_yaml
from pipeline.config.load import build_config, load_config, render_config
from tests.unit.pipeline.config.settings import changed_settings, problems_of

PREPARE: dict[str, Any] = {"command": "prepare", "inputs": ["text"], "tokenizer": "t.model"}
TRAIN = {"command": "train"}
BROKEN: list[tuple[list[dict[str, Any]], dict[str, Any], str, str]] = [
    ([TRAIN, PREPARE], {}, "workflow", "train, prepare"),
    ([PREPARE, PREPARE], {}, "workflow", "2 called prepare"),
    ([TRAIN, {**TRAIN, "name": "more"}], {}, "workflow", "2 of them"),
    ([{**PREPARE, "output": "elsewhere"}], {}, "workflow.0.output", "elsewhere"),
    ([{**PREPARE, "python_stdlib": True}], {}, "workflow.0.inputs", "both"),
    ([{"command": "tokenizer"}], {}, "workflow.0.inputs", "neither"),
    ([{**PREPARE, "tokenizer": None}], {}, "workflow.0.tokenizer", "absent"),
    ([TRAIN], {"training__exit_interval": 5}, "workflow", "given"),
    ([{**TRAIN, "submit": {"gpus_per_node": 1}}], {}, "workflow.0.submit.gpus_per_node", "1"),
]


@pytest.mark.parametrize(("steps", "changes", "path", "value"), BROKEN)
def test_a_broken_rule_is_reported_at_its_setting(
    steps: list[dict[str, Any]], changes: dict[str, Any], path: str, value: str
) -> None:
    (problem,) = problems_of(workflow=steps, **changes)
    assert (problem.path, problem.value) == (path, value)


def test_steps_are_named_after_their_commands_and_survive_being_written() -> None:
    steps = [PREPARE, {**PREPARE, "name": "again"}, TRAIN, {"command": "evaluate", "iters": 3}]
    config = build_config(changed_settings(workflow=steps))
    assert [step.name for step in config.workflow] == ["prepare", "again", "train", "evaluate"]
    assert build_config(parse_yaml(render_config(config))) == config


def test_an_unknown_setting_of_a_step_is_refused() -> None:
    (problem,) = problems_of(workflow=[{"command": "evaluate", "itrs": 3}])
    assert problem.path == "workflow.0.evaluate.itrs"


def test_the_group_is_found_under_its_old_name_with_a_notice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = changed_settings(workflow=[{"command": "train"}])
    new, old = tmp_path / "new.yaml", tmp_path / "old.yaml"
    new.write_text(render_yaml(build_config(settings).model_dump(mode="json")))
    with caplog.at_level(logging.WARNING):
        expected = load_config(new)
    assert caplog.records == []
    old.write_text(new.read_text().replace("\nworkflow:", "\nstages:"))
    assert "\nstages:" in old.read_text()
    with caplog.at_level(logging.WARNING):
        assert load_config(old) == expected
    (notice,) = caplog.records
    assert str(old) in notice.getMessage()
    assert load_config(old, ["stages=null"]).workflow == ()
