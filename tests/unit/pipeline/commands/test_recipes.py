from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.config.load import load_config
from pipeline.config.recipes import RECIPES, find_recipe, name_of, recipe_names
from pipeline.shared.exit_codes import ExitCode


def test_recipes_are_all_files_but_bases_by_name() -> None:
    names = recipe_names()
    assert "demo" in names
    assert "cluster/pythia_2.8b_8_nodes" in names
    files = {file for file in RECIPES.rglob("*.yaml") if file.parent.name != "base"}
    assert {find_recipe(name) for name in names} == files
    assert find_recipe("demo.yaml") == find_recipe("demo")
    assert find_recipe("../setup") is None
    assert find_recipe(str(RECIPES / "demo")) is None


def test_the_list_has_a_row_for_each_recipe() -> None:
    result = CliRunner().invoke(cli.app, ["recipes", "list"], env={"COLUMNS": "200"})
    assert result.exit_code == ExitCode.DONE
    assert {line.split()[0] for line in result.output.splitlines() if line.strip()} >= set(recipe_names())


@pytest.mark.parametrize("name", ["demo", "tiny_ponderlm3", "cluster/pythia_2.8b_8_nodes"])
def test_a_copy_means_the_same_in_another_folder_and_overwrites_nothing(name: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    words = ["recipes", "copy", name, str(file)]
    assert CliRunner().invoke(cli.app, words).exit_code == ExitCode.DONE
    assert load_config(file) == load_config(Path(name))
    assert Path(file.read_text().partition("$schema=")[2].split()[0]).is_file()
    assert CliRunner().invoke(cli.app, words).exit_code == ExitCode.USAGE
    assert CliRunner().invoke(cli.app, ["recipes", "show", name]).stdout == file.read_text()


def test_a_name_that_is_none_is_wrong_usage() -> None:
    result = CliRunner().invoke(cli.app, ["recipes", "show", "dmeo"])
    assert result.exit_code == ExitCode.USAGE
    assert name_of(RECIPES / "demo.yaml") in result.output
