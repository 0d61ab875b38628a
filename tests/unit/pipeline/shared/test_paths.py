from pathlib import Path

import pytest

from pipeline.shared.paths import UnknownNameError, expand_path


@pytest.fixture(autouse=True)
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/user")
    monkeypatch.setenv("SCRATCH", "/scratch/user")
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.delenv("UNSET", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("~", "/home/user"),
        ("~/runs", "/home/user/runs"),
        ("$SCRATCH/runs", "/scratch/user/runs"),
        ("${SCRATCH}/runs", "/scratch/user/runs"),
        ("a/$SCRATCH", "a//scratch/user"),
        ("runs/~/x", "runs/~/x"),
        ("cost$", "cost$"),
        ("a$/b", "a$/b"),
        ("run #3: 'x'", "run #3: 'x'"),
        ("s3://bucket/x", "s3://bucket/x"),
    ],
)
def test_what_a_path_stands_for(typed: str, meant: str) -> None:
    assert expand_path(typed) == meant
    assert expand_path(meant) == meant


@pytest.mark.parametrize("typed", ["$UNSET/x", "${UNSET}", "a/$EMPTY/b", "~nobody-has-this-name/x"])
def test_unknown_names_are_refused(typed: str) -> None:
    with pytest.raises(UnknownNameError):
        expand_path(typed)


def test_a_part_that_exists_is_what_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "$UNSET").mkdir()
    assert expand_path("$UNSET/new") == "$UNSET/new"
    with pytest.raises(UnknownNameError):
        expand_path("$UNSET/${EMPTY}/new")


def test_an_expanded_path_that_begins_with_a_tilde_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "~")
    expanded = expand_path("$SCRATCH/x")
    assert expanded == str(Path.cwd() / "~" / "x")
    assert expand_path(expanded) == expanded
