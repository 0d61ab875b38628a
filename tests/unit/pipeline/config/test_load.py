from pathlib import Path

import pytest

from pipeline.config.errors import ConfigError
from pipeline.config.load import dump_config, load_config
from pipeline.config.schema import RunConfig

RECIPES = Path(__file__).parents[4] / "pipeline" / "recipes"


def recipes() -> list[Path]:
    return sorted(RECIPES.glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert {"demo", "tiny_vanilla", "tiny_ponderlm2", "tiny_ponderlm3"} <= {path.stem for path in recipes()}


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_every_recipe_is_valid_and_named_like_its_file(path: Path) -> None:
    assert load_config(path).name == path.stem


@pytest.mark.parametrize("path", recipes(), ids=lambda path: path.stem)
def test_a_written_configuration_reads_back_equal(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["optimizer.adam_eps=1.5e-7", "parallel.timeout_seconds=7"])

    dump_config(config, tmp_path / "run_config.yaml")

    assert load_config(tmp_path / "run_config.yaml") == config


def test_the_demo_runs_tensor_parallel_on_two_ranks() -> None:
    config = load_config(RECIPES / "demo.yaml")

    assert config.ponder.method == "ponderlm3"
    assert (config.parallel.tensor, config.parallel.world_size) == (2, 2)


def test_overrides_win_over_the_file() -> None:
    config = load_config(RECIPES / "tiny_vanilla.yaml", ["train-iters=7", "optimizer.lr_warmup_iters=1"])

    assert config.training.train_iters == 7


def test_a_configuration_can_come_from_overrides_alone() -> None:
    config = load_config(
        None,
        ["model.architecture=llama", "num-layers=2", "hidden-size=64", "ffn-hidden-size=128",
         "num-attention-heads=4", "ponder-method=vanilla", "seq-length=32", "micro-batch-size=1",
         "global-batch-size=2", "train-iters=3", "lr=1e-3", "data-path=runs/data"],
    )  # fmt: skip

    assert isinstance(config, RunConfig)


def test_problems_of_overrides_and_of_the_file_come_together(tmp_path: Path) -> None:
    file = tmp_path / "broken.yaml"
    text = (RECIPES / "tiny_vanilla.yaml").read_text(encoding="utf-8")
    file.write_text(text.replace("hidden_size: 64", "hidden_size: 65", 1), encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        load_config(file, ["trian_iters=3"])

    assert [problem.path for problem in caught.value.problems] == ["trian_iters", "model.hidden_size"]
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("- 1\n", "must hold groups of settings"), ("a: [1\n", "must be YAML"), ("a: 1\na: 2\n", "given twice")],
)
def test_a_file_that_is_no_configuration_is_explained(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text, encoding="utf-8")

    with pytest.raises(ConfigError, match=expected):
        load_config(file)


def test_a_missing_file_points_to_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"examples are in .*recipes"):
        load_config(tmp_path / "nowhere.yaml")
