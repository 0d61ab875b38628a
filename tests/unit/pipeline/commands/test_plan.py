import json
from pathlib import Path

from typer.testing import CliRunner

from pipeline import cli
from pipeline.config.errors import ConfigError

RECIPES = Path(__file__).parents[4] / "pipeline" / "recipes"
LARGE = str(RECIPES / "pythia_2.8b_ponderlm3.yaml")


def test_a_run_that_fits_ends_with_0(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"

    result = CliRunner().invoke(
        cli.app, ["plan", "--config", LARGE, "--mean-steps", "1.5", "--json", str(file)]
    )

    assert result.exit_code == 0, result.output
    values = json.loads(file.read_text())
    assert values["fits"]
    assert values["suggestions"] == []
    assert "1.5 steps" in result.output


def test_a_run_that_does_not_fit_ends_with_1_and_suggests_one_that_does(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    one_rank = ["parallel.tensor=1", "parallel.sequence_parallel=false"]

    result = CliRunner().invoke(
        cli.app,
        ["plan", "--config", LARGE, "--gpus", "8", "--json", str(file), *one_rank],
    )

    assert result.exit_code == 1, result.output
    values = json.loads(file.read_text())
    assert not values["fits"]
    assert values["ranks"] == 8
    assert ["parallel.tensor=2", "parallel.data=4", "parallel.sequence_parallel=true"] in values[
        "suggestions"
    ]


def test_a_plan_for_cpus_has_no_speed_and_advises_against_sequence_parallelism(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    small = ["model.vocab_size=400", "parallel.tensor=2", "--gpu", "cpu", "--reserve", "0.5"]

    def plan(*further: str) -> dict[str, object]:
        recipe = str(RECIPES / "tiny_ponderlm3.yaml")
        arguments = ["plan", "--config", recipe, "--json", str(file), *small, *further]
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, result.output
        values: dict[str, object] = json.loads(file.read_text())
        return values

    sharded = plan("parallel.sequence_parallel=true")
    assert sharded["advice"] == ["parallel.sequence_parallel=false"]
    assert (sharded["tokens_per_second"], sharded["days"]) == (None, None)
    assert plan()["advice"] == []


def test_an_unknown_device_is_refused() -> None:
    result = CliRunner().invoke(cli.app, ["plan", "--config", LARGE, "--gpu", "h1000"])

    assert result.exit_code == 2
    assert "h100-80g" in result.output


def test_more_mean_steps_than_thoughts_are_refused() -> None:
    result = CliRunner().invoke(cli.app, ["plan", "--config", LARGE, "--mean-steps", "4"])

    assert result.exit_code == 2
    assert "--mean-steps" in result.output


def test_an_unknown_vocabulary_must_be_given() -> None:
    result = CliRunner().invoke(cli.app, ["plan", "--config", str(RECIPES / "vanilla_70m.yaml")])

    assert isinstance(result.exception, ConfigError)
    (problem,) = result.exception.problems
    assert problem.path == "model.vocab_size"
    assert "--vocab-size" in problem.cure
