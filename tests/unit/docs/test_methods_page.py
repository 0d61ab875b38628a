"""What `docs/methods.md` names exists, has the defaults that it states, and costs what it says."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_ext.ponder.config import Method
from pipeline.config.load import setting_paths
from pipeline.config.ponder_section import PonderSection
from pipeline.config.rules_ponder import methods_with
from pipeline.metrics import names

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="ascii")
RECIPES = {path.stem for path in (ROOT / "pipeline" / "recipes").glob("*.yaml")}
TAGS = {value for value in vars(names).values() if isinstance(value, str)}


def section(heading: str) -> str:
    """The text below a heading, down to the next one of its level."""
    level = heading.split(" ", maxsplit=1)[0]
    (found,) = re.findall(rf"^{re.escape(heading)}\n(.*?)(?=^{level} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def in_backticks(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def bullet(text: str, name: str) -> list[str]:
    """Return what is in backticks in the bullet `name:` of a text."""
    (found,) = re.findall(rf"^- {name}: (.*?)(?=^- |\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    return in_backticks(found)


def table(text: str) -> list[list[str]]:
    """The cells of the rows of the only table in a text, without its head."""
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def settings_table() -> dict[str, str]:
    rows = table(section("## Settings").split("###")[0])
    return {name: default for cell, default, _ in rows for name in in_backticks(cell)}


def stated_default(cell: str, method: Method) -> Any:
    """A cell has the usual default in backticks, and behind a semicolon the methods that have another."""
    usual, *exceptions = cell.split("; ")
    stated = next((text for text in exceptions if method in re.findall(r"\w+", text)), usual)
    return yaml.safe_load(in_backticks(stated)[0])


def family(tag: str) -> str:
    return re.sub(r"/(step|iteration|sweep|tau)_\w+$", "", tag)


def test_every_setting_is_described_and_every_described_setting_exists() -> None:
    assert list(settings_table()) == list(PonderSection.model_fields)


@pytest.mark.parametrize("name", [name for name in PonderSection.model_fields if name != "method"])
def test_the_stated_defaults_are_those_of_the_settings(name: str) -> None:
    for method in methods_with(name):
        actual = PonderSection(method=method).model_dump(mode="json")[name]
        assert stated_default(settings_table()[name], method) == actual


@pytest.mark.parametrize("method", Method)
def test_every_method_has_a_section_with_its_settings_and_its_recipes(method: Method) -> None:
    text = section(f"### `{method}`")

    assert set(bullet(text, "Settings")) == set(method.facts.settings)
    assert set(bullet(text, "Recipes")) == {
        recipe
        for recipe in RECIPES
        if f"_{method}_" in f"_{recipe}_" or (recipe, method) == ("demo", "ponderlm3")
    }


def test_settings_that_stand_for_published_code_exist() -> None:
    for cells in table(section("## Where published code departs")):
        for text in in_backticks(cells[2]):
            setting = text.split(":")[0]
            path = setting if "." in setting else f"ponder.{setting}"
            assert path in setting_paths()


def test_settings_outside_of_ponder_exist() -> None:
    named = set(re.findall(r"`((?:model|parallel|optimizer|checkpoint|metrics)\.\w+)", PAGE))
    assert named
    assert named <= set(setting_paths())


def test_every_tag_exists_and_every_ponder_tag_is_explained() -> None:
    heads = re.findall(r"^- ((?:`[^`]+`(?:, )?)+)", section("## Reading the curves"), re.MULTILINE)
    explained = {family(tag) for head in heads for tag in in_backticks(head)}

    assert explained <= TAGS
    assert explained >= {tag for tag in TAGS if tag.startswith("ponder/")}
    everywhere = {family(tag) for tag in in_backticks(PAGE) if tag.startswith("ponder/") and tag != "ponder/"}
    assert everywhere <= TAGS


def test_the_snippet_prints_the_table_of_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(ROOT)

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(snippet, {})

    rows = printed.getvalue()
    assert len(rows.splitlines()) == len(Method)
    assert f"\n{rows}" in PAGE
