from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import ConfigError
from pipeline.config.load import build_config
from tests.unit.pipeline.config.settings import changed_settings, problems_of

BARE = {"data__eod_id": 0, "model__vocab_size": 100}
# Changes that break one rule, the setting it is reported at, and the setting or value that the cure gives.
BROKEN: list[tuple[dict[str, Any], str, str]] = [
    ({"data__heldout_split": "train"}, "data.heldout_split", ""),
    ({"data__heldout_split": "train", "data__heldout_path": "runs/data"}, "data.heldout_split", ""),
    ({"data__path": None}, "data.path", ""),
    ({"data__format": "megatron", "model__vocab_size": 100}, "data.eod_id", ""),
    ({"data__format": "rows", "data__eod_id": 0}, "model.vocab_size", ""),
    ({"data__heldout_format": "rows", "data__eod_id": 0}, "model.vocab_size", ""),
    ({"data__eod_id": 0}, "data.eod_id", ""),
    ({**BARE, "data__format": "rows", "data__eod_id": 100}, "data.eod_id", ""),
    ({"data__sources": [{"path": "a"}]}, "data.sources", "runs/data"),
    ({"data__path": None, "data__sources": [{"path": "a"}, {"path": "b/a"}]}, "data.sources", ""),
    ({**BARE, "data__format": "megatron", "data__token_type": "int32"}, "data.token_type", ""),
]


@pytest.mark.parametrize(("changes", "path", "cure"), BROKEN)
def test_a_broken_rule_is_reported_at_its_setting_with_a_cure(
    changes: dict[str, Any], path: str, cure: str
) -> None:
    problems = problems_of(**changes)

    assert [problem.path for problem in problems] == [path]
    assert problems[0].cure
    assert cure in problems[0].cure


ALLOWED: list[dict[str, Any]] = [
    {**BARE, "data__format": "megatron"},
    {**BARE, "data__format": "rows", "data__token_type": "int32"},
    {"data__heldout_split": "train", "data__heldout_path": "runs/other"},
    {"data__path": None, "data__sources": [{"path": "a"}, {"path": "b/a", "name": "b", "weight": 2}]},
]


@pytest.mark.parametrize("changes", ALLOWED)
def test_consistent_settings_are_accepted(changes: dict[str, Any]) -> None:
    build_config(changed_settings(**changes))


def test_a_source_is_named_after_its_path() -> None:
    sources = [{"path": "x/books", "weight": 0.5, "max_epochs": 2.5}, {"path": "y", "name": "web"}]
    data = build_config(changed_settings(data__path=None, data__sources=sources)).data
    assert data.sources is not None
    assert [(each.name, each.weight, each.max_epochs) for each in data.sources] == [
        ("books", 0.5, 2.5),
        ("web", 1.0, None),
    ]
    assert data.training_paths == (Path("x/books"), Path("y"))


def test_a_mistake_in_a_source_is_reported_at_its_place() -> None:
    (problem,) = problems_of(data__path=None, data__sources=[{"path": "a"}, {"path": "b", "weight": -1}])
    assert problem.path == "data.sources.1.weight"


def test_rows_keep_their_order_unless_asked() -> None:
    assert build_config(changed_settings(data__format="rows", **BARE)).data.order == "sequential"
    asked = build_config(changed_settings(data__format="rows", data__order="shuffled", **BARE))
    assert asked.data.order == "shuffled"
    assert build_config(changed_settings()).data.order == "shuffled"


def test_text_is_looked_for_where_there_is_a_manifest() -> None:
    rows = {"data__format": "rows", **BARE}
    assert build_config(changed_settings()).data.manifest_folder == Path("runs/data")
    mixed = changed_settings(data__heldout_path="runs/shards", data__heldout_format="webdataset", **rows)
    assert build_config(mixed).data.manifest_folder == Path("runs/shards")
    with pytest.raises(ConfigError) as caught:
        _ = build_config(changed_settings(**rows)).data.manifest_folder
    assert [problem.path for problem in caught.value.problems] == ["data.heldout_path"]
