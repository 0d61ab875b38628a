import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console

from data_prep.inputs.documents import TextFolder
from pipeline.checkpoint.folder import publish, start_partial_checkpoint
from pipeline.checkpoint.state import TrainState, write_train_state
from pipeline.config.errors import ConfigError
from pipeline.config.load import dump_config
from pipeline.config.schema import RunConfig
from pipeline.demo import LEDGER_FILE, Demo, run_demo
from pipeline.demo_ledger import DemoLedger, fingerprint, program_fingerprint
from pipeline.evaluation.results import save_json
from pipeline.metrics.jsonl import JsonlSink
from tests.unit.pipeline.config.settings import valid_settings
from tests.unit.pipeline.metrics.records import training_record, validation_record
from tests.unit.pipeline.report.sample_data import made_up_evaluation, made_up_sample

WORDS = ("def", "return", "import", "yield", "class", "self", "lambda", "while", "assert", "raise", "global")


@dataclass
class RecordedCommands:
    """Stands in for the ranks: notes each command and leaves the files that it would leave."""

    config: RunConfig
    exit_codes: dict[str, int] = field(default_factory=dict)
    saves: bool = True
    calls: list[str] = field(default_factory=list)

    def __call__(self, arguments: Sequence[str], num_ranks: int) -> int:
        assert list(arguments[:2]) == ["-m", "pipeline.cli"]
        assert num_ranks == 2
        command = arguments[2]
        self.calls.append(command)
        if self.exit_codes.get(command):
            return self.exit_codes[command]
        {"train": self.train, "eval": self.evaluate, "generate": self.generate}[command]()
        return 0

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
def config(tmp_path: Path) -> RunConfig:
    settings = valid_settings()
    settings["model"]["vocab_size"] = 300
    settings["ponder"]["num_latent_thoughts"] = 3
    settings["parallel"] = {"tensor": 2}
    settings["output_dir"] = tmp_path / "run"
    settings["data"]["path"] = tmp_path / "run" / "data"
    return RunConfig(**settings)


@pytest.fixture
def source(tmp_path: Path) -> TextFolder:
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(40):
        lines = [" ".join(WORDS[(number * line + line) % 9 :]) for line in range(1, 30)]
        (folder / f"{number:02d}.txt").write_text("\n".join(lines))
    return TextFolder(root=folder)


def demo_of(
    config: RunConfig, source: TextFolder, commands: RecordedCommands, *, fresh: bool = False
) -> Demo:
    return Demo(
        config_path=Path("run.yaml"),
        overrides=("seed=1",),
        config=config,
        console=Console(file=io.StringIO(), width=200),
        ledger=DemoLedger(config.output_dir / LEDGER_FILE),
        source=source,
        num_workers=0,
        fresh=fresh,
        run_command=commands,
    )


def shown(demo: Demo) -> str:
    assert isinstance(demo.console.file, io.StringIO)
    return demo.console.file.getvalue()


def test_the_demo_goes_from_text_to_a_report(config: RunConfig, source: TextFolder) -> None:
    commands = RecordedCommands(config)
    demo = demo_of(config, source, commands)
    assert run_demo(demo) == 0
    assert commands.calls == ["train", "eval", "generate"]
    assert (config.output_dir / "report.html").exists()
    assert "held-out loss" in shown(demo)
    assert "report.html" in shown(demo)
    assert list(demo.seconds) == ["tokenizer", "tokenization", "training", "evaluation", "generation"]


def test_a_second_run_repeats_nothing(config: RunConfig, source: TextFolder) -> None:
    commands = RecordedCommands(config)
    run_demo(demo_of(config, source, commands))
    commands.calls.clear()
    demo = demo_of(config, source, commands)
    assert run_demo(demo) == 0
    assert commands.calls == []
    assert demo.seconds["training"] is None
    assert "up to date" in shown(demo)


def test_changed_settings_train_again_from_the_start(config: RunConfig, source: TextFolder) -> None:
    run_demo(demo_of(config, source, RecordedCommands(config)))
    leftover = config.output_dir / "tensorboard" / "events"
    leftover.parent.mkdir()
    leftover.touch()
    changed = config.model_copy(update={"seed": 99})
    commands = RecordedCommands(changed)
    assert run_demo(demo_of(changed, source, commands)) == 0
    assert commands.calls == ["train", "eval", "generate"]
    assert not leftover.exists()


def test_changed_text_trains_again(config: RunConfig, source: TextFolder) -> None:
    run_demo(demo_of(config, source, RecordedCommands(config)))
    (source.root / "new.txt").write_text("while True: pass\n" * 50)
    commands = RecordedCommands(config)
    assert run_demo(demo_of(config, source, commands)) == 0
    assert commands.calls == ["train", "eval", "generate"]


def test_fresh_trains_again(config: RunConfig, source: TextFolder) -> None:
    commands = RecordedCommands(config)
    run_demo(demo_of(config, source, commands))
    commands.calls.clear()
    run_demo(demo_of(config, source, commands, fresh=True))
    assert commands.calls == ["train", "eval", "generate"]


def test_a_failed_step_ends_the_demo_with_its_code_and_is_repeated(
    config: RunConfig, source: TextFolder
) -> None:
    commands = RecordedCommands(config, exit_codes={"eval": 17})
    demo = demo_of(config, source, commands)
    assert run_demo(demo) == 17
    assert commands.calls == ["train", "eval"]
    assert "evaluation ended with exit code 17" in shown(demo)
    assert not (config.output_dir / "report.html").exists()
    healthy = RecordedCommands(config)
    assert run_demo(demo_of(config, source, healthy)) == 0
    assert healthy.calls == ["eval", "generate"]


def test_a_stopped_training_goes_on_from_its_checkpoint(config: RunConfig, source: TextFolder) -> None:
    stopped = RecordedCommands(config, saves=False)
    assert run_demo(demo_of(config, source, stopped)) == 75
    assert stopped.calls == ["train"]
    write_checkpoint(config.checkpoint_directory, 50)
    assert run_demo(demo_of(config, source, RecordedCommands(config))) == 0
    assert (config.checkpoint_directory / "iter_0000050").exists()


def test_checkpoints_of_another_run_are_never_removed(config: RunConfig, source: TextFolder) -> None:
    write_checkpoint(config.checkpoint_directory, 50)
    with pytest.raises(ConfigError, match="set output_dir to a new folder"):
        run_demo(demo_of(config, source, RecordedCommands(config)))
    assert (config.checkpoint_directory / "iter_0000050").exists()


def test_fingerprints_depend_on_how_texts_are_split() -> None:
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert program_fingerprint() == program_fingerprint()
