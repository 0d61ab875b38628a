from typing import Any

import pytest

from pipeline.config.load import build_config
from tests.unit.pipeline.config.settings import changed_settings, problems_of

# Changes that break one rule, the setting it is reported at, and the setting or value that the cure gives.
BROKEN = [
    ({"model__hidden_size": 66}, "model.hidden_size", "64 or 68"),
    ({"model__num_query_groups": 3}, "model.num_query_groups", "2"),
    ({"model__architecture": "gpt_neox", "model__num_query_groups": 2}, "model.num_query_groups", "llama"),
    ({"model__kv_channels": 15}, "model.rotary_percent", "model.kv_channels"),
    ({"model__rotary_percent": 0.01}, "model.rotary_percent", "model.kv_channels"),
    ({"training__seq_length": 4096}, "training.seq_length", "4096"),
    ({"model__vocab_size": 100, "model__padding_token_id": 100}, "model.padding_token_id", "99"),
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
    {"model__hidden_size": 66, "model__kv_channels": 8},
    {"model__num_query_groups": 2},
]


@pytest.mark.parametrize("changes", ALLOWED)
def test_consistent_settings_are_accepted(changes: dict[str, Any]) -> None:
    build_config(changed_settings(**changes))
