import re
from pathlib import Path

import pytest

from cluster.sweep import sweep_members
from pipeline.config.errors import ConfigError
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
        "tiny-lr-0.001-seed-1",
        "tiny-lr-0.001-seed-2",
        "tiny-lr-0.0003-seed-1",
        "tiny-lr-0.0003-seed-2",
    ]
    assert members[0].run_folder == Path("/runs/tiny-lr-0.001-seed-1")
    assert members[0].overrides == (
        "optimizer.lr=1e-3",
        "seed=1",
        "name=tiny-lr-0.001-seed-1",
        "output_dir=/runs/tiny-lr-0.001-seed-1",
    )


def names_of(config: RunConfig, *options: str) -> list[str]:
    return [member.name for member in sweep_members(config, options)]


@pytest.mark.parametrize("option", ["lr=0.001", "lr=1e-3", "optimizer.lr=1.0e-3", "optimizer.lr=0.0010"])
def test_the_name_of_a_run_does_not_depend_on_the_spelling(config: RunConfig, option: str) -> None:
    assert names_of(config, option) == ["tiny-lr-0.001"]


def test_runs_that_differ_in_setting_or_value_have_different_names(config: RunConfig) -> None:
    options = (
        *("optimizer.lr=0.001,0.003,1.0e-4,3.0e-4,1e-22,1e+22,-1,1", "optimizer.weight_decay=0.001,0.003"),
        *("optimizer.min_lr=0.001", "checkpoint.interval=4", "metrics.interval=4", "evaluation.interval=4"),
        *("ponder.penalty_ramp=[0, 2],[0,4],[[1,2],[3]],[[1],[2,3]]", "data.path=a/b,a-b,a b,'a,b'"),
        *(
            "seed=9007199254740993,9007199254740992",
            "submit.qos=x,X",
            f"data.train_split={'a' * 300},{'a' * 301}",
        ),
    )
    names = [name for option in options for name in names_of(config, option)]
    assert len(set(names)) == len(names) == 8 + 2 + 1 + 3 + 4 + 4 + 2 + 2 + 2
    assert all(len(name) < 150 and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) for name in names)


@pytest.mark.parametrize(
    "folder", ["sweeps #1/tiny", "a: b/tiny", "'q' \"w\"/tiny", "é\u2028/tiny", "[x]/{y}"]
)
def test_the_folder_of_a_run_is_read_back_as_it_was(config: RunConfig, folder: str, tmp_path: Path) -> None:
    there = config.model_copy(update={"output_dir": tmp_path / folder})
    recipe = Path("pipeline/recipes/tiny_ponderlm3.yaml")
    for member in sweep_members(there, ["lr=0.001,0.003"]):
        read = load_config(recipe, ["data.path=/data", *member.overrides])
        assert (read.output_dir, read.name) == (member.run_folder, member.name)
        assert read.output_dir.parent == tmp_path / Path(folder).parent


def test_a_setting_is_given_once_under_whatever_names(config: RunConfig) -> None:
    with pytest.raises(ClusterError, match=r"optimizer\.lr"):
        sweep_members(config, ["lr=0.001", "optimizer.lr=0.002"])
    with pytest.raises(ClusterError, match=r"tiny-lr-0\.001"):
        sweep_members(config, ["lr=0.001,1e-3"])


def test_a_setting_that_does_not_exist_is_left_to_the_check_of_the_run(config: RunConfig) -> None:
    (member,) = sweep_members(config, ["optimizer.rl=0.001"])
    with pytest.raises(ConfigError, match=r"optimizer\.rl"):
        load_config(Path("pipeline/recipes/tiny_ponderlm3.yaml"), ["data.path=/data", *member.overrides])


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
