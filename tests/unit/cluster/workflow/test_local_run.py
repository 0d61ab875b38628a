import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from cluster.commands.demo import further_dependencies, is_run_again
from cluster.workflow.local_run import LocalWorkflow, run_workflow
from cluster.workflow.marker import Marker, load_marker
from pipeline.checkpoint.folder import publish, start_partial_checkpoint
from pipeline.checkpoint.state import TrainState, write_train_state
from pipeline.cli import app
from pipeline.config.load import dump_config
from pipeline.config.schema import RunConfig
from pipeline.evaluation.results import save_json
from pipeline.metrics.jsonl import JsonlSink
from tests.unit.pipeline.config.settings import valid_settings
from tests.unit.pipeline.metrics.records import training_record, validation_record
from tests.unit.pipeline.report.sample_data import made_up_evaluation, made_up_sample

WORDS = ("def", "return", "import", "yield", "class", "self", "lambda", "while", "assert", "raise", "global")
STEPS = ("tokenizer", "prepare", "train", "evaluate", "generate", "report")


@dataclass
class RecordedCommands:
    """Stands in for the ranks: notes each command; those that need a model leave made-up files."""

    config: RunConfig
    exit_codes: dict[str, int] = field(default_factory=dict)
    saves: bool = True
    calls: list[str] = field(default_factory=list)

    def __call__(self, arguments: Sequence[str], num_ranks: int) -> int:
        assert list(arguments[:3]) == ["-P", "-m", "pipeline.cli"]
        command = arguments[3]
        assert num_ranks == (2 if command in ("train", "eval", "generate") else 1)
        self.calls.append(command)
        if self.exit_codes.get(command):
            return self.exit_codes[command]
        made_up = {"train": self.train, "eval": self.evaluate, "generate": self.generate}
        if command in made_up:
            made_up[command]()
            return 0
        finished = CliRunner().invoke(app, list(arguments[3:]), catch_exceptions=False)
        return finished.exit_code

    def train(self) -> None:
        output, checkpoints = self.config.output_dir, self.config.checkpoint_directory
        sink = JsonlSink(output / "metrics.jsonl")
        sink.write_training(training_record())
        sink.write_validation(validation_record())
        sink.close()
        dump_config(self.config, output / "run_config.yaml")
        if self.saves:
            write_checkpoint(checkpoints, self.config.training.train_iters)

    def evaluate(self) -> None:
        save_json(made_up_evaluation(), self.config.output_dir / "evaluation.json")

    def generate(self) -> None:
        save_json(made_up_sample(), self.config.output_dir / "sample.json")


def write_checkpoint(directory: Path, iteration: int) -> None:
    partial = start_partial_checkpoint(directory, iteration)
    write_train_state(partial, TrainState(iteration=iteration, consumed_samples=8 * iteration))
    publish(partial)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(40):
        lines = [" ".join(WORDS[(number * line + line) % 9 :]) for line in range(1, 30)]
        (folder / f"{number:02d}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def config(tmp_path: Path, source: Path) -> RunConfig:
    settings = valid_settings()
    settings["model"]["vocab_size"] = 300
    settings["ponder"]["num_latent_thoughts"] = 3
    settings["parallel"] = {"tensor": 2}
    settings["output_dir"] = tmp_path / "run"
    settings["data"]["path"] = tmp_path / "run" / "data"
    steps: list[dict[str, object]] = [{"command": command} for command in STEPS]
    steps[0]["inputs"] = steps[1]["inputs"] = [str(source)]
    steps[1]["workers"] = 0
    steps[4]["prompt"] = "def "
    return RunConfig(**{**settings, "workflow": steps})


def run_demo(commands: RecordedCommands, *, fresh: bool = False) -> int:
    """Run the workflow as `megaponder demo` does."""
    config = commands.config
    return run_workflow(
        LocalWorkflow(
            config=config,
            console=Console(file=io.StringIO()),
            again=[step.name for step in config.workflow if is_run_again(step.command, fresh=fresh)],
            also_depends_on=further_dependencies(config),
            run_command=commands,
        )
    )


def marker_of(config: RunConfig, step: str) -> Marker:
    marker = load_marker(config.output_dir, step)
    assert marker is not None
    return marker


def test_a_workflow_goes_from_text_to_a_report(config: RunConfig) -> None:
    commands = RecordedCommands(config)
    assert run_demo(commands) == 0
    assert commands.calls == ["tokenizer", "data", "train", "eval", "generate", "report"]
    assert "<html" in (config.output_dir / "report.html").read_text()
    for step in STEPS:
        marker = marker_of(config, step)
        assert marker.exit_code == 0
        assert marker.output is not None
        assert marker.finished_at is not None
        assert marker.finished_at - marker.started_at < timedelta(minutes=5)


def test_a_second_run_repeats_nothing_but_the_report(config: RunConfig) -> None:
    commands = RecordedCommands(config)
    run_demo(commands)
    commands.calls.clear()
    before = marker_of(config, "train")
    assert run_demo(commands) == 0
    assert commands.calls == ["report"]
    assert marker_of(config, "train") == before


@pytest.mark.parametrize("change", ["seed", "layout", "iterations", "program"])
def test_a_training_of_something_else_starts_from_scratch(
    config: RunConfig, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_demo(RecordedCommands(config))
    leftover = config.output_dir / "tensorboard" / "events"
    leftover.parent.mkdir()
    leftover.touch()
    changes = {
        "seed": {"seed": 99},
        "layout": {"parallel": config.parallel.model_copy(update={"tensor": 1, "pipeline": 2})},
        "iterations": {"training": config.training.model_copy(update={"train_iters": 20})},
    }
    changed = config.model_copy(update=changes.get(change, {}))
    if change == "program":
        monkeypatch.setattr("cluster.workflow.identity.identity_of_program", lambda: "another")
    commands = RecordedCommands(changed)
    assert run_demo(commands) == 0
    assert commands.calls[0] == "train"
    assert not leftover.exists()
    (kept,) = config.output_dir.glob("checkpoints.until-*")
    assert (kept / f"iter_{config.training.train_iters:07d}").exists()


def test_changed_text_trains_again(config: RunConfig, source: Path) -> None:
    run_demo(RecordedCommands(config))
    (source / "new.txt").write_text("while True: pass\n" * 50)
    commands = RecordedCommands(config)
    assert run_demo(commands) == 0
    assert commands.calls[:3] == ["tokenizer", "data", "train"]


def test_fresh_trains_evaluates_and_generates_again(config: RunConfig) -> None:
    commands = RecordedCommands(config)
    run_demo(commands)
    commands.calls.clear()
    run_demo(commands, fresh=True)
    assert commands.calls == ["train", "eval", "generate", "report"]


def test_a_failed_step_ends_the_workflow_with_its_code_and_is_repeated(config: RunConfig) -> None:
    commands = RecordedCommands(config, exit_codes={"eval": 17})
    assert run_demo(commands) == 17
    assert commands.calls[-1] == "eval"
    assert marker_of(config, "evaluate").exit_code == 17
    assert not (config.output_dir / "report.html").exists()
    healthy = RecordedCommands(config)
    assert run_demo(healthy) == 0
    assert healthy.calls == ["eval", "generate", "report"]


def test_a_stopped_training_resumes_from_its_checkpoint(config: RunConfig) -> None:
    stopped = RecordedCommands(config, saves=False)
    assert run_demo(stopped) == 75
    assert stopped.calls[-1] == "train"
    write_checkpoint(config.checkpoint_directory, 50)
    resumed = RecordedCommands(config)
    assert run_demo(resumed) == 0
    assert resumed.calls[0] == "train"
    assert (config.checkpoint_directory / "iter_0000050").exists()
