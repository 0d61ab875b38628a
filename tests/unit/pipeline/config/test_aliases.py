import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.aliases import RENAMED, SUCCESSORS, present_name, rename_settings
from pipeline.config.errors import ConfigError
from pipeline.config.load import load_config, setting_paths

RECIPE = Path(__file__).parents[4] / "pipeline" / "recipes" / "tiny_vanilla.yaml"
TABLE = {"steps": "training.train_iters", "fault.skip": "divergence.on_spike", "faults": "divergence"}


@pytest.fixture
def renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give `training.train_iters` and the group `metrics` earlier names."""
    monkeypatch.setitem(RENAMED, "training.steps", "training.train_iters")
    monkeypatch.setitem(RENAMED, "logging", "metrics")


def notices(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 3}, {"training": {"train_iters": 3}}),
        ({"steps": 3, "training": None}, {"training": {"train_iters": 3}}),
        ({"steps": 3, "training": {"seed": 1}}, {"training": {"seed": 1, "train_iters": 3}}),
        ({"fault": {"skip": "stop"}}, {"divergence": {"on_spike": "stop"}}),
        ({"fault": {"skip": "stop", "x": 1}}, {"fault": {"x": 1}, "divergence": {"on_spike": "stop"}}),
        ({"faults": {"a": 1}}, {"divergence": {"a": 1}}),
        ({"fault": 5, "training": 3}, {"fault": 5, "training": 3}),
    ],
)
def test_values_move_to_the_present_path(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    assert rename_settings(settings, source="run.yaml", renamed=TABLE) == []
    assert settings == expected


def test_a_notice_names_the_file_and_both_names_once(caplog: pytest.LogCaptureFixture) -> None:
    rename_settings({"steps": 3}, source="old/run.yaml", renamed=TABLE)

    (notice,) = notices(caplog)
    assert all(name in notice for name in ("old/run.yaml", "steps", "training.train_iters"))


def test_settings_under_their_present_names_cause_no_notice(caplog: pytest.LogCaptureFixture) -> None:
    settings = {"training": {"train_iters": 3}}

    assert rename_settings(settings, source="run.yaml", renamed=TABLE) == []
    assert notices(caplog) == []


def test_both_names_at_once_are_a_problem_that_names_both() -> None:
    settings = {"steps": 3, "training": {"train_iters": 4}}

    (problem,) = rename_settings(settings, source="run.yaml", renamed=TABLE)

    assert (problem.path, problem.value) == ("steps", "3")
    assert "training.train_iters" in problem.rule
    assert settings == {"training": {"train_iters": 4}}


@pytest.mark.parametrize(
    ("name", "present"),
    [
        ("steps", "training.train_iters"),
        ("faults.on_spike", "divergence.on_spike"),
        ("faultss", "faultss"),
        ("seed", "seed"),
    ],
)
def test_a_name_inside_a_renamed_group_is_renamed_too(name: str, present: str) -> None:
    assert present_name(name, TABLE) == present


@pytest.mark.usefixtures("renamed")
def test_old_files_load_with_notices(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "base.yaml").write_text(
        RECIPE.with_name("base").joinpath("tiny.yaml").read_text().replace("train_iters", "steps")
        + "logging: {interval: 7}\n"
    )
    file = tmp_path / "run.yaml"
    file.write_text("base: base.yaml\nponder: {method: vanilla}\ntraining: {train_iters: 60}\n")

    config = load_config(file)

    # The present name in the file wins over the earlier one in its base.
    assert (config.training.train_iters, config.metrics.interval) == (60, 7)
    assert len(notices(caplog)) == 2
    assert all(str(tmp_path / "base.yaml") in notice for notice in notices(caplog))


@pytest.mark.usefixtures("renamed")
def test_overrides_may_use_old_names(caplog: pytest.LogCaptureFixture) -> None:
    config = load_config(RECIPE, ["training.steps=60", "logging.interval=3"])

    assert (config.training.train_iters, config.metrics.interval) == (60, 3)
    assert len(notices(caplog)) == 2


@pytest.mark.usefixtures("renamed")
def test_both_names_are_reported_together_with_all_other_problems(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        f"base: {RECIPE.with_name('base') / 'tiny.yaml'}\ntraining: {{steps: 60, train_iters: 70}}\n"
    )

    with pytest.raises(ConfigError) as caught:
        load_config(file, ["logging.interval=3", "metrics.interval=4", "ponder.method=none"])

    assert [problem.path for problem in caught.value.problems] == [
        "training.steps",
        "logging.interval",
        "ponder.method",
    ]


def test_every_other_name_leads_to_a_setting() -> None:
    paths = setting_paths()
    groups = {path.partition(".")[0] for path in paths}

    assert set(SUCCESSORS.values()) <= set(paths)
    assert set(RENAMED.values()) <= {*paths, *groups}
    assert not set(RENAMED) & {*paths, *groups}


def test_no_name_of_another_program_is_a_setting_of_ours_elsewhere() -> None:
    by_leaf = {path.rpartition(".")[2]: path for path in setting_paths()}

    assert all(path == by_leaf.get(name, path) for name, path in SUCCESSORS.items())
