import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.ponder.config import Method
from pipeline.config.errors import ConfigError
from pipeline.config.load import changed_settings, load_config, setting_paths
from pipeline.config.reference import config_schema, explain_settings, find_settings, render_reference

REPOSITORY = Path(__file__).parents[4]
RECIPES = REPOSITORY / "pipeline" / "recipes"
SCHEMA = RECIPES / "run_config.schema.json"


def test_every_setting_is_explained() -> None:
    settings = explain_settings()
    assert [one.path for one in settings] == setting_paths()
    assert [one.path for one in settings if not (one.description and one.accepts)] == []


def test_the_page_of_the_docs_is_current() -> None:
    # `megaponder config explain --markdown > docs/settings.md`
    assert (REPOSITORY / "docs" / "settings.md").read_text() == render_reference(explain_settings())


def test_the_schema_of_the_recipes_is_current() -> None:
    # `megaponder config schema --output pipeline/recipes/run_config.schema.json`
    assert json.loads(SCHEMA.read_text()) == config_schema()


@pytest.mark.parametrize("recipe", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_name_the_schema_and_have_its_settings(recipe: Path) -> None:
    first, _, rest = recipe.read_text().partition("\n")
    name = first.removeprefix("# yaml-language-server: $schema=")
    assert (recipe.parent / name).resolve() == SCHEMA
    _check(yaml.safe_load(rest), config_schema(), config_schema()["$defs"])


def _check(settings: Mapping[str, Any], part: Mapping[str, Any], definitions: Mapping[str, Any]) -> None:
    assert part["additionalProperties"] is False
    assert settings.keys() <= part["properties"].keys()
    for name, value in settings.items():
        accepted = part["properties"][name].get("anyOf", ())
        references = [one["$ref"].rpartition("/")[2] for one in accepted if "$ref" in one]
        if isinstance(value, dict) and references:
            _check(value, definitions[references[0]], definitions)


@pytest.mark.parametrize(
    ("key", "paths"),
    [
        ("optimizer.lr", ["optimizer.lr"]),
        ("lr", ["optimizer.lr"]),
        ("train-iters", ["training.train_iters"]),
        ("bf16", ["training.precision"]),
        ("seed", ["seed"]),
        ("iteration", ["init_from.iteration"]),
        ("interval", ["checkpoint.interval", "evaluation.interval", "metrics.interval"]),
    ],
)
def test_settings_are_found_by_any_of_their_names(key: str, paths: list[str]) -> None:
    assert [one.path for one in find_settings(key)] == paths


def test_a_group_is_all_of_its_settings() -> None:
    assert {one.path.partition(".")[0] for one in find_settings("metrics")} == {"metrics"}


def test_a_setting_that_does_not_exist_gets_the_closest_names() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr_warmup_iters"):
        find_settings("optimizer.lr_warmup_iter")


def test_types_ranges_defaults_and_methods_are_those_of_the_schema() -> None:
    (lr,) = find_settings("optimizer.lr")
    assert (lr.default, lr.methods) == (None, ())
    assert lr.accepts.endswith("above 0")
    (beta,) = find_settings("adam_beta1")
    assert beta.default == "0.9"
    assert "at least 0" in beta.accepts
    assert "below 1" in beta.accepts
    (style,) = find_settings("lr_decay_style")
    assert (style.accepts, style.default) == ("cosine, wsd, constant, linear", "cosine")
    (fraction,) = find_settings("bottom_k_fraction")
    assert Method.ADAPONDERLM in fraction.methods
    assert Method.LOOP not in fraction.methods
    (seconds,) = find_settings("timeout_seconds")
    assert "distributed_timeout_minutes" in seconds.other_names


def test_changed_settings_are_those_that_differ_from_their_defaults() -> None:
    overrides = ["lr=0.5", "optimizer.adam_beta1=0.9", "ponder.penalty_weight=0.3", "metrics.interval=7"]
    changed = changed_settings(load_config(RECIPES / "tiny_ponderlm3.yaml", overrides))
    assert changed["optimizer"]["lr"] == 0.5
    assert "adam_beta1" not in changed["optimizer"]
    assert changed["metrics"] == {"interval": 7}
    assert changed["ponder"] == {"method": "ponderlm3", "penalty_ramp": [0, 20]}
    assert "submit" not in changed
