from pathlib import Path

import pytest

from pipeline.config.errors import ConfigError
from pipeline.config.load import dump_config, load_config
from pipeline.config.schema import RunConfig

RECIPES = Path(__file__).parents[4] / "pipeline" / "recipes"


def test_a_written_configuration_reads_back_equal(tmp_path: Path) -> None:
    schedule = "ponder.jacobi_schedule=[[0, 1], [50, 3]]"
    config = load_config(
        RECIPES / "tiny_ponderlm2.yaml",
        ["ponder.random_jacobi_iterations=null", schedule, "optimizer.adam_eps=1.5e-7"],
    )

    dump_config(config, tmp_path / "run_config.yaml")

    assert load_config(tmp_path / "run_config.yaml") == config
    assert config.ponder.jacobi_schedule == ((0, 1), (50, 3))


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
    text = (RECIPES / "demo.yaml").read_text(encoding="utf-8")
    file.write_text(text.replace("hidden_size: 192", "hidden_size: 193", 1), encoding="utf-8")

    with pytest.raises(ConfigError) as caught:
        load_config(file, ["trian_iters=3"])

    assert [problem.path for problem in caught.value.problems] == ["trian_iters", "model.hidden_size"]
    assert str(file) in str(caught.value)
