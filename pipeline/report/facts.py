"""Facts about a run that its report shows beside the results."""

import json
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path

from data_prep.manifest import ShardManifest
from pipeline.config.schema import RunConfig
from pipeline.config.workflow_section import MARKER_FOLDER
from pipeline.cost.account import flops_account
from pipeline.metrics.history import read_history
from pipeline.metrics.names import TENSORBOARD_FOLDER
from pipeline.report.data import Command
from pipeline.shared.progress import render_duration


def run_facts(run_folder: Path, config: RunConfig, manifest: ShardManifest) -> tuple[tuple[str, str], ...]:
    """Return (name, value) lines about model, data and time."""
    parameters = flops_account(config, manifest.header.tokenizer.vocab_size).parameters()
    model, parallel = config.model, config.parallel
    tokens = {split: manifest.num_tokens(split) for split in manifest.splits}
    trained = config.training.train_iters * config.training.global_batch_size * config.training.seq_length
    facts = (
        (
            "model",
            f"{model.architecture}, {model.num_layers} layers, hidden size {model.hidden_size}, "
            f"{parameters.total:,} parameters",
        ),
        (
            "layout",
            f"{parallel.sizes}, {config.training.precision}",
        ),
        ("text", f"{manifest.header.inputs.source}, {manifest.header.inputs.num_files:,} files"),
        ("tokens", ", ".join(f"{split} {number:,}" for split, number in tokens.items())),
        ("trained on", f"{trained:,} tokens in {config.training.train_iters:,} iterations"),
        *_history_facts(run_folder),
        ("time", ", ".join(f"{step} {render_duration(taken)}" for step, taken in step_seconds(run_folder))),
    )
    return tuple((name, value) for name, value in facts if value)


def _history_facts(run_folder: Path) -> list[tuple[str, str]]:
    """Return program, machine and dates of a run's training; nothing for one of an earlier version."""
    sessions = read_history(run_folder)
    if not sessions:
        return []
    first, last = sessions[0], sessions[-1]
    starts = "" if len(sessions) == 1 else f", {len(sessions)} starts"
    return [
        ("program", last.origin.program),
        ("machine", last.origin.machine),
        ("trained", f"{first.origin.started_at} to {last.ended_at or '?'}{starts}"),
    ]


def step_seconds(run_folder: Path) -> list[tuple[str, float]]:
    """Return how long the finished steps of the run's workflow took, in the order they ran."""
    markers = [json.loads(path.read_text()) for path in (run_folder / MARKER_FOLDER).glob("*.json")]
    times = [
        (datetime.fromisoformat(marker["started_at"]), datetime.fromisoformat(marker["finished_at"]), marker)
        for marker in markers
        if marker["finished_at"] is not None
    ]
    return [
        (marker["step"], (finished - started).total_seconds())
        for started, finished, marker in sorted(times, key=lambda time: time[:2])
    ]


def further_commands(config: RunConfig, config_path: Path) -> tuple[Command, ...]:
    """Return command lines for a closer look at the run."""
    checkpoints, megaponder = config.checkpoint_directory, _program("megaponder")
    longer = 2 * config.training.train_iters
    return (
        Command(
            purpose="Look at every curve of the training",
            line=f"{_program('tensorboard')} --logdir {config.output_dir / TENSORBOARD_FOLDER}",
        ),
        Command(
            purpose="Let the model continue a text of yours",
            line=f"{megaponder} generate {checkpoints} --prompt 'import os' --max-new-tokens 80",
        ),
        Command(purpose="Evaluate it again", line=f"{megaponder} eval {checkpoints}"),
        Command(
            purpose="Train twice as long",
            line=f"{megaponder} train --config {config_path} train-iters={longer} "
            f"output_dir={config.output_dir}-longer",
        ),
    )


def _program(name: str) -> str:
    """How to call a program of this environment: by its name where the shell finds it, else by its path."""
    own = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    return name if found is not None and Path(found) == own else os.path.relpath(own)
