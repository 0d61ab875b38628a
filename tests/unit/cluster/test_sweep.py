from pathlib import Path

import pytest

from cluster.sweep import sweep_members
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.shared.errors import ClusterError


@pytest.fixture
def config() -> RunConfig:
    settings = ["name=tiny", "output_dir=/runs/tiny", "data.path=/data", "submit.target=slurm"]
    return load_config(Path("pipeline/recipes/tiny_ponderlm3.yaml"), settings)


def test_a_sweep_is_the_grid_of_its_options(config: RunConfig) -> None:
    members = sweep_members(config, ["optimizer.lr=1e-3, 3e-4", "seed=1,2"])
    assert [member.name for member in members] == [
        "tiny-lr-1e-3-seed-1",
        "tiny-lr-1e-3-seed-2",
        "tiny-lr-3e-4-seed-1",
        "tiny-lr-3e-4-seed-2",
    ]
    assert members[0].run_folder == Path("/runs/tiny-lr-1e-3-seed-1")
    assert members[0].overrides == (
        "optimizer.lr=1e-3",
        "seed=1",
        "name=tiny-lr-1e-3-seed-1",
        "output_dir=/runs/tiny-lr-1e-3-seed-1",
    )


def test_a_comma_inside_brackets_belongs_to_a_value(config: RunConfig) -> None:
    members = sweep_members(config, ["penalty_ramp=[0, 2],[0, 4]"])
    assert [member.overrides[0] for member in members] == ["penalty_ramp=[0, 2]", "penalty_ramp=[0, 4]"]
    assert [member.name for member in members] == ["tiny-penalty_ramp-0-2", "tiny-penalty_ramp-0-4"]


def test_no_option_is_no_sweep(config: RunConfig) -> None:
    assert sweep_members(config, []) == ()


@pytest.mark.parametrize("option", ["lr", "lr=", "=1", "lr=1,,2"])
def test_invalid_variables_are_refused(config: RunConfig, option: str) -> None:
    with pytest.raises(ClusterError, match="--sweep"):
        sweep_members(config, [option])


def test_equal_runs_are_refused(config: RunConfig) -> None:
    with pytest.raises(ClusterError, match=r"2 runs.*tiny-seed-1"):
        sweep_members(config, ["seed=1,1"])


def test_only_clusters_take_sweeps(config: RunConfig) -> None:
    elsewhere = config.model_copy(update={"submit": config.submit.model_copy(update={"target": "local"})})
    with pytest.raises(ClusterError, match="--target"):
        sweep_members(elsewhere, ["seed=1,2"])
