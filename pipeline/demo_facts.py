"""What the demo's report says about the run beside its results."""

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from data_prep.manifest import ShardManifest
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account
from pipeline.metrics.tensorboard import TENSORBOARD_FOLDER
from pipeline.report.data import Command
from pipeline.shared.progress import render_duration


def run_facts(
    config: RunConfig, manifest: ShardManifest, seconds: Mapping[str, float | None]
) -> tuple[tuple[str, str], ...]:
    """Return the lines about model, data and time for the report.

    Args:
        seconds: how long each step took; None stands for a step that was up to date.
    """
    parameters = flops_account(config, manifest.header.tokenizer.vocab_size).parameters()
    model, parallel = config.model, config.parallel
    tokens = {split: manifest.num_tokens(split) for split in manifest.splits}
    trained = config.training.train_iters * config.training.global_batch_size * config.training.seq_length
    return (
        (
            "model",
            f"{model.architecture}, {model.num_layers} layers, hidden size {model.hidden_size}, "
            f"{parameters.total:,} parameters",
        ),
        ("layout", f"tensor {parallel.tensor} x data {parallel.data}, {config.training.precision}"),
        ("text", f"{manifest.header.inputs.source}, {manifest.header.inputs.num_files:,} files"),
        ("tokens", ", ".join(f"{split} {number:,}" for split, number in tokens.items())),
        ("trained on", f"{trained:,} tokens in {config.training.train_iters:,} iterations"),
        ("time", ", ".join(_render_step(step, taken) for step, taken in seconds.items())),
    )


def further_commands(config: RunConfig, config_path: Path) -> tuple[Command, ...]:
    """Return the command lines with which to look further."""
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


def _render_step(step: str, seconds: float | None) -> str:
    return f"{step} {'up to date' if seconds is None else render_duration(seconds)}"
