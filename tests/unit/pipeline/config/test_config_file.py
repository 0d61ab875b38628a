import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.config_file import parse_yaml, read_settings, render_yaml
from pipeline.config.errors import ConfigError, ConfigProblem


def written(folder: Path, **texts: str) -> Path:
    """Write YAML files; return the one called `run`."""
    for name, text in texts.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "run.yaml"


BASE = "model: {num_layers: 2, hidden_size: 8}\ntraining: {train_iters: 5}\nseed: 1\n"


def test_a_file_adds_to_its_base_and_wins_over_it(tmp_path: Path) -> None:
    run = written(
        tmp_path,
        **{"base/small": BASE},
        run="base: base/small.yaml\nmodel: {num_layers: 3}\ndata: {path: x}\n",
    )

    assert read_settings(run)[0] == {
        "model": {"num_layers": 3, "hidden_size": 8},
        "training": {"train_iters": 5},
        "seed": 1,
        "data": {"path": "x"},
    }


def test_null_resets_a_setting_of_the_base(tmp_path: Path) -> None:
    run = written(tmp_path, small=BASE, run="base: small.yaml\nseed:\nmodel: {hidden_size: null}\n")

    settings, _ = read_settings(run)
    assert settings["seed"] is None
    assert settings["model"] == {"num_layers": 2, "hidden_size": None}


def test_the_base_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = written(tmp_path / "recipes", small=BASE, run="base: small.yaml\n")
    monkeypatch.chdir(tmp_path)

    assert read_settings(run.relative_to(tmp_path))[0]["seed"] == 1


def problem_in(path: Path) -> ConfigProblem:
    """Return the one problem of a file that cannot be read."""
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    (problem,) = caught.value.problems
    return problem


@pytest.mark.parametrize(
    ("base", "file", "value"),
    [
        ("base: nowhere.yaml", "run.yaml", "'nowhere.yaml'"),
        ("base: [small.yaml]", "run.yaml", "['small.yaml']"),
        ("base:", "run.yaml", "null"),
        ("base: second.yaml", "second.yaml", "small.yaml"),
        ("base: text.yaml", "text.yaml", "str"),
    ],
)
def test_a_base_that_cannot_be_used_is_reported_at_its_file(
    tmp_path: Path, base: str, file: str, value: str
) -> None:
    run = written(tmp_path, small=BASE, second="base: small.yaml\n", text="some text\n", run=f"{base}\n")

    problem = problem_in(run)

    assert problem.path == str(tmp_path / file)
    assert value in problem.value


@pytest.mark.parametrize(
    ("text", "value"), [("- 1\n", "list"), ("a: [1\n", "line 2"), ("a: 1\na: 2\n", "line 2")]
)
def test_a_file_that_is_not_a_configuration_is_reported_with_the_place(
    tmp_path: Path, text: str, value: str
) -> None:
    run = written(tmp_path, run=text)

    problem = problem_in(run)

    assert problem.path == str(run)
    assert value in problem.value


def test_an_empty_file_gives_no_settings(tmp_path: Path) -> None:
    assert read_settings(written(tmp_path, run="# nothing\n")) == ({}, [])


def test_a_missing_file_points_to_the_recipes(tmp_path: Path) -> None:
    problem = problem_in(tmp_path / "nowhere.yaml")

    assert problem.path == str(tmp_path / "nowhere.yaml")
    assert "pipeline/recipes" in problem.cure


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("12", 12),
        ("1_000", 1000),
        ("010", "010"),
        ("1:30", "1:30"),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("", None),
        ("~", None),
        ("2026-01-01", "2026-01-01"),
        ("'12'", "12"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    parsed = parse_yaml(text)

    assert parsed == value
    assert type(parsed) is type(value)


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        parse_yaml("optimizer:\n  lr: 1\n  lr: 2\n")

    assert caught.value.problem_mark is not None
    assert caught.value.problem_mark.line == 2


def test_objects_are_not_built_from_yaml() -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml("!!python/object/apply:os.getcwd []")


def test_lists_stay_on_one_line() -> None:
    assert render_yaml({"ramp": [0, 40]}) == "ramp: [0, 40]\n"


@given(
    st.dictionaries(
        st.text("abc_", min_size=1),
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False),
            st.text(st.characters(codec="ascii", exclude_categories=["Cc"])),
            st.lists(st.integers()),
        ),
    )
)
def test_rendered_yaml_reads_back_equal(values: dict[str, object]) -> None:
    read = parse_yaml(render_yaml(values))

    assert read == values
    assert all(type(read[key]) is type(value) for key, value in values.items())
    assert all(not isinstance(value, float) or not math.isnan(value) for value in read.values())
