import contextlib
import stat
from pathlib import Path

import pytest

from pipeline.config.config_file import parse_yaml
from pipeline.config.errors import ConfigError
from pipeline.config.load import (
    build_config,
    dump_config,
    dump_private_config,
    load_config,
    render_changes,
    render_config,
    setting_paths,
)
from pipeline.config.recipes import recipe_names
from pipeline.config.schema import RunConfig
from tests.unit.pipeline.config.settings import changed_settings, problems_of

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
    assert caught.value.source == str(file)
    assert str(file) in str(caught.value)


def test_types_ranges_unknown_names_and_rules_are_reported_together() -> None:
    problems = problems_of(
        model__num_layers="two",
        optimizer__lr=-1.0,
        training__train_iter=5,
        parallel__tensor=3,
        training__global_batch_size=9,
    )

    assert {problem.path for problem in problems} == {
        "model.num_layers",
        "optimizer.lr",
        "training.train_iter",
        "parallel.tensor",
        "training.global_batch_size",
    }


def test_an_invalid_setting_is_not_reported_again_by_the_rules_on_it() -> None:
    problems = problems_of(model__num_attention_heads=-4, parallel__tensor=3)

    assert [problem.path for problem in problems] == ["model.num_attention_heads"]


def test_the_text_of_an_error_lists_every_problem() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(changed_settings(seed=-1, optimizer__lr=0.0))

    headline, *lines = str(caught.value).splitlines()
    assert "2" in headline
    assert [line.split(":")[0].lstrip(" -") for line in lines] == ["seed", "optimizer.lr"]


def test_setting_paths_name_every_leaf_once() -> None:
    paths = setting_paths()

    assert len(set(paths)) == len(paths)
    assert {"name", "seed", "model.num_layers", "metrics.collapse_patience"} <= set(paths)
    assert "model" not in paths


SECRETS = {
    "environment": {"HF_TOKEN": "hunter2", "MINE": "hunter2", "PROXY": "http://me:hunter2@proxy", "A": "1"},
    "secrets": ["MINE"],
    "setup": ["export WANDB_API_KEY=hunter2", "module load cuda"],
    "ray_address": "http://me:hunter2@head:8265",
}


def test_secrets_are_masked_wherever_a_configuration_is_written_but_for_its_job(tmp_path: Path) -> None:
    step = {"command": "prepare", "inputs": ["https://me:hunter2@host/a.txt"], "tokenizer": "t.model"}
    config = build_config(changed_settings(submit=SECRETS, workflow=[step]))
    dump_config(config, tmp_path / "shown.yaml")
    dump_private_config(config, tmp_path / "private.yaml")
    for text in ((tmp_path / "shown.yaml").read_text(), str(config.model_dump(mode="json"))):
        assert "hunter2" not in text
    shown = load_config(tmp_path / "shown.yaml")
    assert shown.submit.environment["A"] == "1"
    assert shown.submit.setup[1] == "module load cuda"
    # What it means does not change.
    assert load_config(tmp_path / "private.yaml") == config
    assert stat.S_IMODE((tmp_path / "private.yaml").stat().st_mode) == 0o600


def test_a_secret_of_the_wrong_kind_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        build_config(changed_settings(submit__environment={"HF_TOKEN": 48151623}))
    assert "48151623" not in str(caught.value)


PATH_SETTINGS = ("output_dir", "data.path", "data.heldout_path", "checkpoint.directory")


@pytest.mark.parametrize("name", PATH_SETTINGS)
def test_paths_are_expanded_in_every_setting_that_is_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", str(tmp_path / "scratch"))
    for typed, meant in (("~/x", "home/x"), ("$SCRATCH/x #1", "scratch/x #1")):
        config = load_config(RECIPES / "tiny_vanilla.yaml", [f"{name}={typed}"])
        section, _, leaf = name.rpartition(".")
        assert getattr(getattr(config, section) if section else config, leaf) == tmp_path / meant
        dump_config(config, tmp_path / "run_config.yaml")
        monkeypatch.setenv("HOME", "/elsewhere")
        assert load_config(tmp_path / "run_config.yaml") == config
        monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_an_unset_variable_in_a_path_is_reported_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSET", raising=False)
    problems = problems_of(
        output_dir="$UNSET/x", data__path="~nobody-has-this-name", checkpoint__directory="a\0b"
    )
    assert {problem.path for problem in problems} == {"output_dir", "data.path", "checkpoint.directory"}
    assert any("UNSET" in problem.cure for problem in problems)


@pytest.mark.parametrize("name", [path for path in setting_paths() if path != "name"])
def test_absurd_values_are_accepted_or_refused_at_once(name: str) -> None:
    for value in ("1000000000000000", "9" * 40, "-1", "1e308", "1e-320", ".nan", "[" * 19 + "]" * 19):
        with contextlib.suppress(ConfigError):
            render_config(load_config(RECIPES / "tiny_vanilla.yaml", [f"{name}={value}"]))


def test_long_values_are_not_shown_in_full() -> None:
    (problem,) = problems_of(training__train_iters="x" * 100_000)
    assert len(problem.value) < 1000


@pytest.mark.parametrize("name", recipe_names())
def test_the_settings_that_differ_from_the_defaults_build_an_equal_configuration(name: str) -> None:
    config = load_config(Path(name))
    changes = render_changes(config)

    assert build_config(parse_yaml(changes)) == config
    assert len(changes) < len(render_config(config))
