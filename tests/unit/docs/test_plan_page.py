"""The table of recipes in `docs/plan.md` has the figures that `megaponder plan` gives today."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli

PAGE = (Path(__file__).parents[3] / "docs" / "plan.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `(\w[\w.]+)` \| (\d+) \| (\d+) \| (\d+) \| ([\d.]+) \|$", re.MULTILINE)


@pytest.mark.parametrize(("recipe", "devices", "gibibytes", "mfu", "days"), ROW.findall(PAGE))
def test_the_plan_of_a_recipe_is_the_one_on_the_page(
    recipe: str, devices: str, gibibytes: str, mfu: str, days: str, tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    words = ("plan", "--config", recipe, "--gpus", devices, "--json", str(file))
    assert CliRunner().invoke(cli.app, words).exit_code == 0
    plan = json.loads(file.read_text())
    # Figures on the page are rounded, and are of use as long as they are about right.
    assert plan["needed_bytes"] / 2**30 == pytest.approx(float(gibibytes), rel=0.05)
    assert 100 * plan["mfu"] == pytest.approx(float(mfu), rel=0.05)
    assert plan["days"] == pytest.approx(float(days), rel=0.05, abs=0.05)


def test_the_page_has_three_sizes_of_four_recipes() -> None:
    assert len(ROW.findall(PAGE)) == 12
