import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.shared.python_start import (
    forget_working_directory,
    python_module,
    python_variables,
    source_folder,
)


@pytest.fixture
def shadowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working directory with files that have the names of packages."""
    for name in ("pipeline", "cluster", "data_prep", "megatron_ext", "torch", "yaml", "json"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} of the user was imported')")
    source = str(source_folder() or "")
    monkeypatch.setenv("PYTHONPATH", source)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("path", ["", ":", "{old}:", ".:{old}", "{old}::/opt/tools", "{here}:{old}"])
def test_files_of_the_working_directory_are_not_imported(
    shadowed: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = os.environ["PYTHONPATH"]
    monkeypatch.setenv("PYTHONPATH", path.format(old=old, here=shadowed))
    environment = os.environ | python_variables(os.environ)
    ours = python_module("pipeline.shared.json_lines")
    code = "import cluster, data_prep, subprocess, sys; "
    code += f"subprocess.run([sys.executable, *{ours[1:]}], check=True)"
    for arguments in (ours, ("-P", "-c", code)):
        subprocess.run([sys.executable, *arguments], env=environment, check=True, capture_output=True)


def test_parts_of_the_path_that_the_user_has_named_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    found = python_variables({"PYTHONPATH": "/opt/b:relative:/opt/a::"})["PYTHONPATH"].split(":")
    assert [part for part in found if part.startswith("/opt")] == ["/opt/b", "/opt/a"]
    assert "relative" not in found
    monkeypatch.setattr("pipeline.shared.python_start.source_folder", lambda: None)
    assert python_variables({}) == {"PYTHONSAFEPATH": "1"}
    assert python_variables({"PYTHONPATH": ":"})["PYTHONPATH"] == ""


def test_the_working_directory_is_forgotten_unless_it_is_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), str(repository), "/usr/lib"])
    monkeypatch.chdir(tmp_path)
    forget_working_directory()
    assert sys.path == [str(repository), "/usr/lib"]
    monkeypatch.chdir(repository)
    forget_working_directory()
    assert sys.path == [str(repository), "/usr/lib"]
