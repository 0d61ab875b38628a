import math
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.config_file import parse_value, parse_yaml, read_settings, render_yaml
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
        ("base: run.yaml", "run.yaml", "run.yaml"),
        ("base: loop.yaml", "loop.yaml", "run.yaml"),
        ("base: text.yaml", "text.yaml", "str"),
    ],
)
def test_a_base_that_cannot_be_used_is_reported_at_its_file(
    tmp_path: Path, base: str, file: str, value: str
) -> None:
    run = written(tmp_path, small=BASE, loop="base: run.yaml\n", text="some text\n", run=f"{base}\n")

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
    assert "megaponder recipes list" in problem.cure


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e5", 1e5),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        (".5e-3", 0.5e-3),
        ("+.5E2", 50.0),
        ("5.", 5.0),
        ("0x10", 16),
        ("0o17", 15),
        ("1_000_000", 1_000_000),
        ("1_0", "1_0"),
        ("1__000", "1__000"),
        ("0b11", "0b11"),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("yes", "yes"),
        ("190:20:30", "190:20:30"),
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


@pytest.mark.parametrize(
    "text",
    [
        "? [a, b]\n: 1\n",
        "name: {{run_name}}\n",
        "a: &a [*a]\n",
        "&a a: {b: *a, c: &b {d: *b}}\n",
        "a:\n\tb: 1\n",
        "a: 1\n---\nb: 2\n",
        "a: !!int x\n",
        "a: !!bool maybe\n",
        "a: !!float text\n",
        "a: !!set {b}\n",
        "a: !!binary x\n",
        "a: !!timestamp 2026-01-01\n",
        "a: \0\n",
        "a: *nothing\n",
        "a: '\n",
        f"a: {'9' * 5000}\n",
        f"a: 0x{'f' * 5000}\n",
        f"a: 1.{'0' * 5000}\n",
        "[" * 5000,
        "[" * 5000 + "]" * 5000,
        "- " * 5000,
        "{a: " * 5000,
        "? " * 5000,
    ],
    ids=lambda text: text[:24],
)
def test_what_has_no_clear_meaning_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


@pytest.mark.parametrize("form", ["[{}, {}]", "{{a: {}, b: {}}}"])
def test_aliases_that_unfold_to_many_values_are_refused(form: str) -> None:
    lines = ["a0: &a0 [1, 2, 3, 4]"]
    lines += [f"a{n}: &a{n} " + form.format(*[f"*a{n - 1}"] * 2) for n in range(1, 30)]
    with pytest.raises(yaml.YAMLError):
        parse_yaml("\n".join(lines))
    assert parse_yaml("\n".join(lines[:8]))["a0"] == [1, 2, 3, 4]


def test_keys_are_words_as_they_are_written() -> None:
    assert parse_yaml("{1: a, true: b, null: c, 0x1: d}") == {"1": "a", "true": "b", "null": "c", "0x1": "d"}


def test_a_byte_order_mark_and_line_ends_of_windows_change_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_bytes(b"\xef\xbb\xbfseed: 1\r\nname: caf\xc3\xa9\r\n")
    assert read_settings(run)[0] == {"seed": 1, "name": "caf\u00e9"}


@pytest.mark.parametrize("content", [b"\xff\xfes\0", b"name: caf\xe9\n", b"\x80", b"a: \x1b[2J\n"])
def test_bytes_that_are_no_text_are_refused(tmp_path: Path, content: bytes) -> None:
    run = tmp_path / "run.yaml"
    run.write_bytes(content)
    assert problem_in(run).path == str(run)


def test_files_that_do_not_end_or_are_none_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(2**30)
    for path in (Path("/dev/zero"), tmp_path / "pipe", tmp_path / "large", tmp_path, Path("nul\0")):
        assert problem_in(path).path == str(path)
    run = written(tmp_path, run=f"base: {tmp_path / 'pipe'}\n")
    problem_in(run)


def test_the_base_may_name_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECIPES", str(tmp_path))
    run = written(tmp_path / "elsewhere", run="base: $RECIPES/small.yaml\n")
    written(tmp_path, small=BASE)
    assert read_settings(run)[0]["seed"] == 1
    monkeypatch.delenv("RECIPES")
    problem_in(run)


@pytest.mark.parametrize("text", ["3 # three", "[1, 2] # two", "[1 #2]", "# nothing"])
def test_a_single_value_has_no_comments(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_value(text)


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("[a#b, 'c #d']", ["a#b", "c #d"]), ("{a: 1}", {"a": 1}), ("", None)]
)
def test_other_single_values_are_those_of_files(text: str, value: object) -> None:
    assert parse_value(text) == parse_yaml(text) == value


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


def test_a_base_may_have_a_base_and_may_be_a_recipe(tmp_path: Path) -> None:
    run = written(tmp_path, middle="base: tiny_vanilla\nseed: 3\n", run="base: middle.yaml\nname: mine\n")
    settings, _ = read_settings(run)
    of_recipe, _ = read_settings(Path("tiny_vanilla"))
    assert settings == of_recipe | {"seed": 3, "name": "mine"}


def test_a_file_is_preferred_to_a_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, demo="seed: 77\n")
    monkeypatch.chdir(tmp_path)
    assert read_settings(Path("demo.yaml"))[0] == {"seed": 77}
    assert read_settings(Path("demo"))[0] != {"seed": 77}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tiny_vanila", "tiny_vanilla"),
        ("runs/demo", "run_config.yaml"),
        ("runs", "other.yaml"),
        ("tab.yaml", "tabs"),
    ],
)
def test_a_mistaken_file_gets_the_one_that_was_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, meant: str
) -> None:
    written(tmp_path / "runs" / "demo", run_config="seed: 1\n")
    written(tmp_path, **{"runs/other": "seed: 1\n", "tab": "model:\n\tnum_layers: 2\n"})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        read_settings(Path(typed))
    assert meant in caught.value.problems[0].cure
