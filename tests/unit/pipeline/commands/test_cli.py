import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline import cli
from pipeline.checkpoint.folder import CONFIG_NAME
from pipeline.checkpoint.state import STATE_NAME
from pipeline.commands.lazy_group import CommandEntry, load_command
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.load import dump_config, load_config
from pipeline.shared.errors import CheckpointError, DataError
from pipeline.shared.exit_codes import ExitCode
from tests.unit.pipeline.checkpoint.saved import save
from tests.unit.pipeline.run.test_inputs import write_data

RECIPE = Path(__file__).parents[4] / "pipeline" / "recipes" / "tiny_vanilla.yaml"


def megaponder(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(cli.app, arguments)


def command_lines() -> list[list[str]]:
    """Return the words of every command, groups included."""
    found: list[list[str]] = [[]]
    for entry in cli.COMMANDS:
        found.append([entry.name])
        found += [[entry.name, name] for name in getattr(load_command(entry), "commands", {})]
    return found


@pytest.mark.parametrize("entry", cli.COMMANDS, ids=lambda entry: entry.name)
def test_the_line_of_a_command_in_the_help_of_the_program_is_the_first_of_its_own(
    entry: CommandEntry,
) -> None:
    command = load_command(entry)

    assert command.name == entry.name
    assert entry.help == command.help.partition("\n")[0]


def test_the_help_of_the_program_lists_every_command_once() -> None:
    listed = [
        line.split()[1] for line in megaponder("--help").output.splitlines() if re.match("│ [a-z]", line)
    ]

    assert listed == [entry.name for entry in cli.COMMANDS]


@pytest.mark.parametrize("words", command_lines(), ids=lambda words: " ".join(words) or "megaponder")
def test_every_command_explains_itself(words: list[str]) -> None:
    result = megaponder(*words, "--help")

    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.parametrize(
    "words", [words for words in command_lines() if words[:1] not in ([], ["data"], ["tokenizer"])]
)
def test_every_command_shows_an_example(words: list[str]) -> None:
    assert f"megaponder {' '.join(words)}" in megaponder(*words, "--help").output


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("text") / "data")


def test_a_dry_run_prints_the_settings_that_differ_from_the_defaults_or_all(
    data: Path, tmp_path: Path
) -> None:
    words = (
        "train",
        "-c",
        str(RECIPE),
        "--dry-run",
        "train-iters=77",
        f"data.path={data}",
        f"output_dir={tmp_path}",
    )

    result = megaponder(*words)
    assert result.exit_code == ExitCode.DONE
    settings = yaml.safe_load(result.stdout)
    assert settings["training"]["train_iters"] == 77
    assert "kv_channels" not in settings["model"]
    assert yaml.safe_load(megaponder(*words, "--all").stdout)["model"]["kv_channels"] == 16


def test_a_dry_run_checks_the_data_and_the_checkpoint_to_resume_from(data: Path, tmp_path: Path) -> None:
    words = ("train", "-c", str(RECIPE), "--dry-run", f"output_dir={tmp_path}")

    missing = megaponder(*words, f"data.path={tmp_path / 'absent'}").exception
    assert isinstance(missing, ConfigError)
    assert [problem.path for problem in missing.problems] == ["data.path"]
    folder = save(tmp_path / "checkpoints", 5)
    dump_config(load_config(RECIPE, ["seed=7"]), folder / CONFIG_NAME)
    other_seed = megaponder(*words, f"data.path={data}").exception
    assert isinstance(other_seed, CheckpointError)
    (folder / STATE_NAME).write_text("")
    damaged = megaponder(*words, f"data.path={data}").exception
    assert isinstance(damaged, CheckpointError)


def test_bad_settings_are_reported_together() -> None:
    error = megaponder("train", "--config", str(RECIPE), "trian-iters=3", "optimizer.lr=0").exception

    assert isinstance(error, ConfigError)
    assert [problem.path for problem in error.problems] == ["trian-iters", "optimizer.lr"]


def test_the_program_ends_with_the_exit_code_of_an_error_and_without_a_traceback() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "train", "--config", str(RECIPE), "optimizer.lr=0"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")},
    )

    assert result.returncode == ExitCode.USAGE
    assert "optimizer.lr" in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_an_unknown_option_is_a_usage_error() -> None:
    assert megaponder("train", "--confg", "x").exit_code == ExitCode.USAGE


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


def exit_code_of_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a command in this process as its entry point does."""
    monkeypatch.setattr(sys, "argv", ["megaponder", *arguments])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_options_that_are_paths_are_expanded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(RECIPE.read_text().replace("base: ", f"base: {RECIPE.parent}/"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    monkeypatch.delenv("UNSET", raising=False)
    for typed in ("~/run.yaml", "$SCRATCH/run.yaml"):
        assert exit_code_of_main(monkeypatch, "train", "--config", typed, "--show-schedule") == ExitCode.DONE
    assert exit_code_of_main(monkeypatch, "train", "--config", "$UNSET/x", "--dry-run") == ExitCode.USAGE
    assert "UNSET" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [(), ("data",), ("train", "--bogus"), ("bogus",), ("train", "-c")])
def test_a_wrong_command_line_ends_with_the_code_for_usage(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of_main(monkeypatch, *arguments) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out + captured.err


def test_help_ends_with_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    assert exit_code_of_main(monkeypatch, "train", "--help") == ExitCode.DONE


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("train -c tiny_vanilla --train-iters 10", "training.train_iters=10"),
        ("plan -c tiny_vanilla --lr=3", "optimizer.lr=3"),
        ("train tiny_vanilla", "--config tiny_vanilla"),
        ("train my.yaml", "--config my.yaml"),
        ("train -c tiny_vanilla my.yaml", "--config my.yaml"),
        ("train -c tiny_vanilla fp16=true", "training.precision"),
        ("train -c tiny_vanila", "tiny_vanilla"),
        ("submit -c tiny_vanilla --target k8s", "slurm"),
        ("checkpoint show nowhere", "nowhere"),
        ("eval nowhere", "nowhere"),
        ("generate nowhere", "nowhere"),
        ("report nowhere", "nowhere"),
        ("compare nowhere", "nowhere"),
    ],
)
def test_a_natural_mistake_is_wrong_usage_and_gets_what_was_meant(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, meant: str
) -> None:
    assert exit_code_of_main(monkeypatch, *words.split()) == ExitCode.USAGE
    assert meant in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["train"], ["checkpoint"], ["checkpoint", "show"]])
def test_help_has_a_short_name(command: list[str]) -> None:
    short, long = (megaponder(*command, option) for option in ("-h", "--help"))

    assert short.exit_code == 0
    assert short.output == long.output


def test_the_version_is_that_of_the_package() -> None:
    result = megaponder("--version")

    assert result.exit_code == 0
    assert result.output.split() == ["megaponder", version("megaponder")]
