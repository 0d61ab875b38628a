from pathlib import Path

import pytest

from pipeline.config.config_file import read_settings
from pipeline.config.errors import ConfigError


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


def test_null_takes_back_what_the_base_says(tmp_path: Path) -> None:
    run = written(tmp_path, small=BASE, run="base: small.yaml\nseed:\nmodel: {hidden_size: null}\n")

    settings, _ = read_settings(run)
    assert settings["seed"] is None
    assert settings["model"] == {"num_layers": 2, "hidden_size": None}


def test_the_base_is_looked_for_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = written(tmp_path / "recipes", small=BASE, run="base: small.yaml\n")
    monkeypatch.chdir(tmp_path)

    assert read_settings(run.relative_to(tmp_path))[0]["seed"] == 1


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("base: nowhere.yaml", "must have a base that is there, but is 'nowhere.yaml'; it is looked for in"),
        ("base: [small.yaml]", "must name one other file as its base, but is ['small.yaml']"),
        ("base:", "must name one other file as its base, but is null"),
        ("base: second.yaml", "must not have a base itself"),
        ("base: text.yaml", "must hold groups of settings, but is a str"),
    ],
)
def test_a_base_that_cannot_be_built_on_is_explained(tmp_path: Path, base: str, expected: str) -> None:
    run = written(tmp_path, small=BASE, second="base: small.yaml\n", text="some text\n", run=f"{base}\n")

    with pytest.raises(ConfigError) as caught:
        read_settings(run)

    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("- 1\n", "must hold groups of settings"), ("a: [1\n", "must be YAML"), ("a: 1\na: 2\n", "given twice")],
)
def test_a_file_that_is_no_configuration_is_explained(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        read_settings(written(tmp_path, run=text))


def test_an_empty_file_gives_no_settings(tmp_path: Path) -> None:
    assert read_settings(written(tmp_path, run="# nothing\n")) == ({}, [])


def test_a_missing_file_points_to_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"examples are in .*recipes"):
        read_settings(tmp_path / "nowhere.yaml")
