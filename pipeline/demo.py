"""The main job end to end: raw text, shards, training on local ranks, evaluation, generation, report.

Every step is the very function or command that a user has. A step whose input has not changed is skipped, and
a training that was stopped goes on from its newest checkpoint.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from data_prep.inputs.documents import TextFolder, python_standard_library
from data_prep.manifest import ShardManifest, load_manifest
from data_prep.preparation import PrepareRequest
from data_prep.progress import PrepareProgress
from data_prep.run import prepare
from data_prep.tokenizers.tokenizer import TOKENIZER_NAME
from data_prep.tokenizers.tokenizer_training import TokenizerTraining, train_tokenizer
from pipeline.checkpoint.folder import checkpoint_folder
from pipeline.checkpoint.tracker import latest_iteration
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.load import load_config, render_config
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account, mean_training_sweeps
from pipeline.demo_facts import further_commands, run_facts
from pipeline.demo_ledger import DemoLedger, fingerprint, program_fingerprint
from pipeline.evaluation.results import EVALUATION_FILE, SAMPLE_FILE
from pipeline.metrics.jsonl import METRICS_FILE
from pipeline.metrics.tensorboard import TENSORBOARD_FOLDER
from pipeline.ranks.launch import run_ranks
from pipeline.report.collect import collect_report
from pipeline.report.data import ReportData
from pipeline.report.render import write_report
from pipeline.report.table import render_results
from pipeline.shared.exit_codes import ExitCode

REPORT_FILE = "report.html"
LEDGER_FILE = "demo.json"
TRAINING, EVALUATION, GENERATION = "training", "evaluation", "generation"

PROMPT = 'def read_lines(path):\n    """Return the lines of a file."""\n'
NUM_GENERATED_TOKENS = 160
# A small model repeats itself when it always takes the most likely token.
SAMPLING = ("--temperature", "0.8", "--top-p", "0.9", "--seed", "1")


RunCommand = Callable[[Sequence[str], int], int]


def _run_on_ranks(arguments: Sequence[str], num_ranks: int) -> int:
    return run_ranks(arguments, num_ranks=num_ranks)


class StepFailedError(Exception):
    """A step's command ended with another exit code than 0."""

    def __init__(self, step: str, exit_code: int) -> None:
        """Remember which step failed, and how."""
        super().__init__(f"{step} ended with exit code {exit_code}; its own messages are above")
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What the demo works on.

    Attributes:
        config_path: file of the settings; the settings' ``data.path`` is made by the demo.
        source: the text.
        num_workers: Ray workers of the tokenization; 0 uses this process alone.
        fresh: train, evaluate and generate again even if nothing has changed.
        run_command: runs ``python <arguments>`` on a number of ranks and returns the exit code.
        seconds: fills while the steps go by; None stands for a step that was up to date.
    """

    config_path: Path
    overrides: tuple[str, ...]
    config: RunConfig
    console: Console
    ledger: DemoLedger
    source: TextFolder
    num_workers: int = 2
    fresh: bool = False
    run_command: RunCommand = _run_on_ranks
    seconds: dict[str, float | None] = field(default_factory=dict)

    @property
    def output(self) -> Path:
        """The folder of the run."""
        return self.config.output_dir

    @property
    def checkpoint(self) -> Path:
        """The folder of the last checkpoint of the whole run."""
        return checkpoint_folder(self.config.checkpoint_directory, self.config.training.train_iters)


def open_demo(
    config_path: Path,
    overrides: Sequence[str] = (),
    *,
    console: Console,
    num_workers: int = 2,
    fresh: bool = False,
) -> Demo:
    """Read the settings and take the sources of the Python standard library as text."""
    config = load_config(config_path, overrides)
    return Demo(
        config_path=config_path,
        overrides=tuple(overrides),
        config=config,
        console=console,
        ledger=DemoLedger(config.output_dir / LEDGER_FILE),
        source=python_standard_library(),
        num_workers=num_workers,
        fresh=fresh,
    )


def run_demo(demo: Demo) -> int:
    """Run all steps, print a table and write ``report.html`` into the folder of the run.

    Returns:
        The exit code: 0, or that of the first command that failed or was stopped.
    Raises:
        ConfigError: the folder of the run holds checkpoints that are not the demo's.
        DataError: the text cannot be made into shards.
    """
    try:
        manifest = _prepare_data(demo)
        key = training_key(demo.config, manifest)
        _train(demo, key)
        _run_once(demo, EVALUATION, key, evaluate_arguments(demo), demo.output / EVALUATION_FILE)
        _run_once(demo, GENERATION, key, generate_arguments(demo), demo.output / SAMPLE_FILE)
    except StepFailedError as failure:
        demo.console.print(f"[bold red]stopped:[/] {failure}")
        return failure.exit_code
    _report(demo, manifest)
    return ExitCode.DONE


def training_key(config: RunConfig, manifest: ShardManifest) -> str:
    """Return a hash of all that decides what training computes: settings, data and program."""
    shards = [shard.sha256 for shard in manifest.shards]
    return fingerprint(render_config(config), *shards, program_fingerprint())


def train_arguments(demo: Demo) -> list[str]:
    """Return what follows the interpreter to train, as ``megaponder train`` itself starts it."""
    return ["-m", "pipeline.cli", "train", "--config", str(demo.config_path), *demo.overrides]


def evaluate_arguments(demo: Demo) -> list[str]:
    """Return what follows the interpreter to evaluate on the held-out split."""
    output = str(demo.output / EVALUATION_FILE)
    return ["-m", "pipeline.cli", "eval", str(demo.checkpoint), "--output", output]


def generate_arguments(demo: Demo) -> list[str]:
    """Return what follows the interpreter to generate one text."""
    output = str(demo.output / SAMPLE_FILE)
    options = ["--prompt", PROMPT, "--max-new-tokens", str(NUM_GENERATED_TOKENS), *SAMPLING]
    return ["-m", "pipeline.cli", "generate", str(demo.checkpoint), *options, "--output", output]


def _prepare_data(demo: Demo) -> ShardManifest:
    """Train the tokenizer and make the shards; both keep what is already there for the same text."""
    tokenizer = demo.config.data.manifest_folder.parent / TOKENIZER_NAME
    training = TokenizerTraining(source=demo.source, output=tokenizer)
    if demo.config.model.vocab_size is not None:
        training = training.model_copy(update={"vocab_size": demo.config.model.vocab_size})
    _timed(demo, "tokenizer", lambda: train_tokenizer(training))
    request = PrepareRequest(
        source=demo.source,
        output=demo.config.data.manifest_folder,
        tokenizer=tokenizer,
        workers=demo.num_workers,
        overwrite=True,
    )
    _timed(demo, "tokenization", lambda: prepare(request, PrepareProgress(demo.console)))
    return load_manifest(demo.config.data.manifest_folder)


def _train(demo: Demo, key: str) -> None:
    if not demo.fresh and demo.ledger.is_done(TRAINING, key, (demo.checkpoint, demo.output / METRICS_FILE)):
        _skip(demo, TRAINING)
        return
    if demo.fresh or not demo.ledger.was_started(TRAINING, key):
        _remove_old_run(demo)
    demo.ledger.start(TRAINING, key)
    _run_command(demo, TRAINING, train_arguments(demo))
    if latest_iteration(demo.config.checkpoint_directory) != demo.config.training.train_iters:
        # A run that was asked to stop saves and leaves with 0; the same command goes on from there.
        raise StepFailedError(TRAINING, ExitCode.REQUEUE)
    demo.ledger.finish(TRAINING, key)


def _run_once(demo: Demo, step: str, training: str, arguments: list[str], output: Path) -> None:
    """Run a command on the trained model unless it has been run on this very one."""
    key = fingerprint(training, *arguments)
    trained_again = demo.seconds[TRAINING] is not None
    if not trained_again and demo.ledger.is_done(step, key, (output,)):
        _skip(demo, step)
        return
    demo.ledger.start(step, key)
    _run_command(demo, step, arguments)
    demo.ledger.finish(step, key)


def _report(demo: Demo, manifest: ShardManifest) -> None:
    vocab_size = manifest.header.tokenizer.vocab_size
    data = collect_report(
        demo.output,
        name=demo.config.name,
        flops=flops_account(demo.config, vocab_size),
        training_sweeps=mean_training_sweeps(demo.config),
        facts=run_facts(demo.config, manifest, demo.seconds),
        commands=further_commands(demo.config, demo.config_path),
    )
    path = demo.output / REPORT_FILE
    write_report(data, path)
    _print_results(demo.console, data, path)


def _print_results(console: Console, data: ReportData, path: Path) -> None:
    console.print(render_results(data))
    for command in data.commands:
        console.print(f"{command.purpose}:", style="dim")
        console.print(f"  {command.line}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"report: {path.resolve()}", markup=False, highlight=False, soft_wrap=True)


def _remove_old_run(demo: Demo) -> None:
    """Remove what an earlier training of the demo left; data and tokenizer stay."""
    config, checkpoints = demo.config, demo.config.checkpoint_directory
    if checkpoints.exists() and not demo.ledger.knows(TRAINING):
        problem = ConfigProblem(
            path="output_dir",
            rule=f"must be a folder that the demo may write over, but {checkpoints} is not the demo's",
            value=str(config.output_dir),
            cure="set output_dir to a new folder",
        )
        raise ConfigError([problem], source=str(demo.config_path))
    for folder in (checkpoints, config.output_dir / TENSORBOARD_FOLDER):
        shutil.rmtree(folder, ignore_errors=True)
    for name in (METRICS_FILE, EVALUATION_FILE, SAMPLE_FILE, REPORT_FILE):
        (config.output_dir / name).unlink(missing_ok=True)


def _run_command(demo: Demo, step: str, arguments: list[str]) -> None:
    def run() -> None:
        exit_code = demo.run_command(arguments, demo.config.parallel.world_size)
        if exit_code != ExitCode.DONE:
            raise StepFailedError(step, exit_code)

    _timed(demo, step, run)


def _timed(demo: Demo, step: str, run: Callable[[], object]) -> None:
    demo.console.rule(f"[bold]{step}", align="left")
    started = time.monotonic()
    run()
    demo.seconds[step] = time.monotonic() - started


def _skip(demo: Demo, step: str) -> None:
    demo.console.rule(f"[bold]{step}[/]: up to date", align="left")
    demo.seconds[step] = None
