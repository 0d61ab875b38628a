import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline import cli
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.shared.errors import CheckpointError, DataError
from pipeline.shared.exit_codes import ExitCode

RECIPE = Path(__file__).parents[4] / "pipeline" / "recipes" / "tiny_vanilla.yaml"


def megaponder(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def command_lines() -> list[list[str]]:
    """Return the words of every command, groups included."""
    found = [[]]
    for command in cli.app.registered_commands:
        found.append([command.name or getattr(command.callback, "__name__", "")])
    for group in cli.app.registered_groups:
        name = str(group.name)
        found.append([name])
        for command in group.typer_instance.registered_commands if group.typer_instance else []:
            found.append([name, command.name or getattr(command.callback, "__name__", "")])
    return found


@pytest.mark.parametrize("words", command_lines(), ids=lambda words: " ".join(words) or "megaponder")
def test_every_command_explains_itself(words: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [*words, "--help"])

    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    "words", [words for words in command_lines() if words[:1] not in ([], ["data"], ["tokenizer"], ["bench"])]
)
def test_every_command_shows_an_example(words: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [*words, "--help"])

    assert f"megaponder {' '.join(words)}" in result.output


def test_a_dry_run_prints_the_resolved_settings() -> None:
    result = megaponder("train", "--config", str(RECIPE), "--dry-run", "train-iters=77")

    assert result.returncode == ExitCode.DONE
    settings = yaml.safe_load(result.stdout)
    assert settings["training"]["train_iters"] == 77
    assert settings["model"]["kv_channels"] == 16


def test_bad_settings_end_in_a_list_and_a_usage_code_not_in_a_traceback() -> None:
    result = megaponder("train", "--config", str(RECIPE), "trian-iters=3", "optimizer.lr=0")

    assert result.returncode == ExitCode.USAGE
    assert "2 problems" in result.stderr
    assert "optimizer.lr: must be above 0, but is 0" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_unknown_option_is_a_usage_error() -> None:
    assert megaponder("train", "--confg", "x").returncode == ExitCode.USAGE


def test_a_source_is_named_once(tmp_path: Path) -> None:
    arguments = ["data", "prepare", "--tokenizer", "t.model", "--output", str(tmp_path)]

    assert CliRunner().invoke(cli.app, arguments).exit_code == ExitCode.USAGE
    assert CliRunner().invoke(cli.app, [*arguments, ".", "--python-stdlib"]).exit_code == ExitCode.USAGE


def test_errors_for_users_have_their_exit_codes() -> None:
    problem = ConfigProblem(path="a.b", rule="must hold", value="1")

    assert ConfigError([problem]).exit_code == 2
    assert DataError("no such folder").exit_code == 2
    assert CheckpointError("damaged").exit_code == 93


def test_exit_codes_are_the_documented_ones() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "DONE": 0,
        "CRASH": 1,
        "USAGE": 2,
        "NOT_SUPPORTED": 3,
        "RESUME_TO_DISAMBIGUATE": 16,
        "FAILED_VALIDATION": 17,
        "REQUEUE": 75,
        "DO_NOT_REQUEUE": 93,
        "INTERRUPTED": 130,
    }
