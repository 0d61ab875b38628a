from typing import Any

import pytest

from pipeline.config.config_file import parse_yaml
from pipeline.config.load import build_config, render_config
from tests.unit.pipeline.config.settings import changed_settings, problems_of

PREPARE: dict[str, Any] = {"command": "prepare", "inputs": ["text"], "tokenizer": "t.model"}
TRAIN = {"command": "train"}
BROKEN: list[tuple[list[dict[str, Any]], dict[str, Any], str, str]] = [
    ([TRAIN, PREPARE], {}, "stages", "must stand in the order"),
    ([PREPARE, PREPARE], {}, "stages", "a name of their own"),
    ([TRAIN, {**TRAIN, "name": "more"}], {}, "stages", "one train"),
    ([{**PREPARE, "output": "elsewhere"}], {}, "stages.0.output", "that the run reads"),
    ([TRAIN], {"training__exit_interval": 5}, "stages", "exit_interval"),
    ([{**TRAIN, "submit": {"gpus_per_node": 1}}], {}, "stages.0.submit.gpus_per_node", "absent at train"),
]


@pytest.mark.parametrize(("stages", "changes", "path", "rule"), BROKEN)
def test_a_broken_rule_is_reported_at_its_setting(
    stages: list[dict[str, Any]], changes: dict[str, Any], path: str, rule: str
) -> None:
    (problem,) = problems_of(stages=stages, **changes)
    assert problem.path == path
    assert rule in problem.rule


def test_stages_are_named_after_their_commands_and_survive_being_written() -> None:
    stages = [PREPARE, {**PREPARE, "name": "again"}, TRAIN, {"command": "evaluate", "iters": 3}]
    config = build_config(changed_settings(stages=stages))
    assert [stage.name for stage in config.stages] == ["prepare", "again", "train", "evaluate"]
    assert build_config(parse_yaml(render_config(config))) == config


def test_an_unknown_setting_of_a_stage_is_refused() -> None:
    (problem,) = problems_of(stages=[{"command": "evaluate", "itrs": 3}])
    assert problem.path == "stages.0.evaluate.itrs"
