import os
from pathlib import Path

import pytest

from cluster.commands.demo import (
    RECIPE,
    choose_device,
    further_dependencies,
    is_run_again,
    load_demo,
    make_room,
)
from pipeline.config.errors import ConfigError
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig

STEPS = ("tokenizer", "prepare", "train", "evaluate", "generate", "report")


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_demo(RECIPE, [f"output_dir={tmp_path / 'run'}"], num_workers=0)


def write_checkpoint(config: RunConfig) -> Path:
    file = config.checkpoint_directory / "iter_0000050" / "weights"
    file.parent.mkdir(parents=True)
    file.touch()
    return file


def test_checkpoints_of_another_run_are_never_touched(config: RunConfig) -> None:
    file = write_checkpoint(config)
    with pytest.raises(ConfigError) as caught:
        make_room(config, RECIPE)
    assert [problem.path for problem in caught.value.problems] == ["output_dir"]
    assert file.exists()


def test_checkpoints_of_an_earlier_version_of_the_demo_are_set_aside(config: RunConfig) -> None:
    file = write_checkpoint(config)
    (config.output_dir / "demo.json").write_text("{}")
    make_room(config, RECIPE)
    assert not file.exists()
    assert len(list(config.output_dir.glob("checkpoints.until-*"))) == 1
    make_room(config, RECIPE)


def test_the_recipe_and_a_file_without_steps_have_the_same_workflow(tmp_path: Path) -> None:
    text = RECIPE.read_text(encoding="utf-8")
    file = tmp_path / "run.yaml"
    file.write_text(text[: text.index("workflow:")], encoding="utf-8")
    assert load_config(file).workflow == ()
    for source in (RECIPE, file):
        run = load_demo(source, ["seed=9"], num_workers=5)
        assert run.seed == 9
        assert tuple(step.command for step in run.workflow) == STEPS
        assert [step.workers for step in run.workflow if step.command == "prepare"] == [5]


def test_a_fresh_demo_keeps_its_data_and_the_report_is_always_written() -> None:
    assert [step for step in STEPS if is_run_again(step, fresh=False)] == ["report"]
    assert [step for step in STEPS if is_run_again(step, fresh=True)] == list(STEPS[2:])


@pytest.mark.parametrize("axis", ["tensor", "pipeline", "data"])
def test_every_axis_of_the_layout_distinguishes_two_demos(config: RunConfig, axis: str) -> None:
    parallel = config.parallel.model_copy(update={axis: 4})
    changed = config.model_copy(update={"parallel": parallel})
    assert further_dependencies(changed) != further_dependencies(config)


@pytest.mark.parametrize(
    ("gpus", "overrides", "variable", "expected"),
    [
        (0, [], "", "cpu"),
        (1, [], "", "cpu"),
        (1, [], "auto", "cpu"),
        (2, [], "", None),
        (1, ["parallel.tensor=1"], "", None),
        (1, ["parallel.device=cuda"], "", None),
        (1, [], "cuda", "cuda"),
    ],
)
def test_ranks_that_outnumber_gpus_compute_on_the_cpu_unless_told_otherwise(
    gpus: int,
    overrides: list[str],
    variable: str,
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.ranks.gpu_variables.num_gpus", lambda: gpus)
    # Set first, so that it is restored whatever happens.
    monkeypatch.setenv("MEGAPONDER_DEVICE", variable)
    if not variable:
        monkeypatch.delenv("MEGAPONDER_DEVICE")
    choose_device(load_demo(RECIPE, [f"output_dir={tmp_path}", *overrides], num_workers=0))

    assert os.environ.get("MEGAPONDER_DEVICE") == expected
