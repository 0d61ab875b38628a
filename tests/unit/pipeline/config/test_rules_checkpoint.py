from typing import Any

import pytest

from megatron_ext.ponder.config import Method
from pipeline.config.load import build_config
from tests.unit.pipeline.config.settings import changed_settings, problems_of

START = {"init_from__path": "runs/other/checkpoints"}
# Changes that break one rule, the setting it is reported at, and the setting or value that the cure gives.
BROKEN = [
    ({"checkpoint__keep_every": 10}, "checkpoint.keep_every", "checkpoint.keep_last: 2"),
    (START, "init_from.method", "run_config.yaml"),
    ({"init_from__method": "vanilla"}, "init_from.method", ""),
    ({"init_from__iteration": 0}, "init_from.iteration", ""),
    ({"init_from__allow_unused": True}, "init_from.allow_unused", ""),
    ({"init_from__format": "hf"}, "init_from.format", ""),
    (START | {"init_from__format": "hf"}, "init_from.method", "vanilla"),
    (
        START | {"init_from__format": "hf", "init_from__method": "vanilla", "init_from__iteration": 3},
        "init_from.iteration",
        "",
    ),
    (
        START | {"init_from__method": "vanilla", "init_from__ignore": ["some_key"]},
        "init_from.ignore",
        "",
    ),
    (START | {"init_from__method": "loop"}, "init_from.method", "ponderlm3 or vanilla or ponderlm2"),
    (START | {"init_from__method": "adaponderlm"}, "init_from.method", "ponderlm3 or vanilla or ponderlm2"),
    (
        START | {"init_from__method": "vanilla", "ponder__method": "pause"},
        "ponder.pause_token_id",
        "",
    ),
]


@pytest.mark.parametrize(("changes", "path", "cure"), BROKEN)
def test_a_broken_rule_is_reported_at_its_setting_with_a_cure(
    changes: dict[str, Any], path: str, cure: str
) -> None:
    problems = problems_of(**changes)

    assert [problem.path for problem in problems] == [path]
    assert problems[0].cure
    assert cure in problems[0].cure


ALLOWED = [
    {"checkpoint__keep_every": 10, "checkpoint__keep_last": 1},
    START | {"init_from__method": "ponderlm3", "init_from__iteration": 0},
    START | {"init_from__method": "ponderlm2"},
    START | {"init_from__method": "vanilla"},
    START | {"init_from__format": "hf", "init_from__method": "vanilla", "init_from__ignore": ["some_key"]},
    START | {"init_from__method": "vanilla", "ponder__method": "pause", "ponder__pause_token_id": 5},
]


@pytest.mark.parametrize("changes", ALLOWED)
def test_consistent_settings_are_accepted(changes: dict[str, Any]) -> None:
    build_config(changed_settings(**changes))


def test_a_vanilla_model_may_become_any_other_and_none_becomes_vanilla() -> None:
    assert Method.VANILLA.facts.continues == ()
    assert all(Method.VANILLA in method.facts.continues for method in Method if method != Method.VANILLA)
