"""What README shows of a command is what the command prints."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli
from pipeline.config.errors import ConfigError

REPOSITORY = Path(__file__).parents[3]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_error_in_the_readme_is_the_one_that_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    (command, shown) = re.findall(r"```\n\$ megaponder (.+)\nerror: (.+?)```", README, re.DOTALL)[0]
    monkeypatch.chdir(REPOSITORY)
    error = CliRunner().invoke(cli.app, shlex.split(command)).exception
    assert isinstance(error, ConfigError)
    assert str(error) == shown.rstrip("\n")
