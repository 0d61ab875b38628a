"""Whole runs of `megaponder train`: saving and resuming, and how they end when something goes wrong."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megatron_ext.device import has_cuda
from pipeline.metrics.jsonl import METRICS_FILE
from pipeline.metrics.names import LM_LOSS
from pipeline.shared.exit_codes import ExitCode
from scripts.gpu_check.place import Findings, Place

COMMAND_SECONDS = 60
ROW_TOKENS = 64
VOCAB_SIZE = 256
NUM_STEPS, STOPPED_AT = 6, 3
# Rows of a micro-batch that no device has room for: logits alone take 4 TiB.
TOO_MANY_ROWS = 2**26


def resume(place: Place) -> Findings:
    """Compare an interrupted run, saved in the background, with one that was not."""
    found = Findings()
    recipe = _write_recipe(place.folder)
    whole, parts = (place.folder / name for name in ("whole", "parts"))
    asks = ("training.deterministic=true", "checkpoint.async_save=true", f"checkpoint.interval={STOPPED_AT}")
    codes = [
        _train(recipe, f"output_dir={whole}", *asks),
        _train(recipe, f"output_dir={parts}", f"training.exit_interval={STOPPED_AT}", *asks),
        _train(recipe, f"output_dir={parts}", *asks),
    ]
    losses = [_losses(folder) for folder in (whole, parts)]
    found.figures = {"exit_codes": codes, "losses": losses}
    found.expect(codes == [0, 0, 0], f"exit codes {codes}")
    found.expect(len(losses[0]) == NUM_STEPS, f"{len(losses[0])} of {NUM_STEPS} steps were logged")
    found.expect(losses[0] == losses[1], f"the resumed run differs: {losses}")
    found.summary = f"saved at {STOPPED_AT}, resumed: losses of {NUM_STEPS} steps " + (
        "equal to the bit" if losses[0] == losses[1] else "differ"
    )
    return found


def faults(place: Place) -> Findings:
    """Let runs fail, and look at their exit codes."""
    found = Findings()
    recipe = _write_recipe(place.folder)
    expected = {"stop signal": ExitCode.REQUEUE}
    codes = {"stop signal": _stopped(recipe, place.folder / "stopped")}
    # A host without memory ends processes at random.
    if has_cuda():
        import torch

        rows = f"training.micro_batch_size={TOO_MANY_ROWS}"
        batch = f"training.global_batch_size={TOO_MANY_ROWS}"
        codes["out of memory"] = _train(recipe, f"output_dir={place.folder / 'full'}", rows, batch)
        expected["out of memory"] = ExitCode.DO_NOT_REQUEUE
        too_many = f"parallel.data={torch.cuda.device_count() + 1}"
        batch = f"training.global_batch_size={4 * (torch.cuda.device_count() + 1)}"
        codes["too few GPUs"] = _train(recipe, f"output_dir={place.folder / 'few'}", too_many, batch)
        expected["too few GPUs"] = ExitCode.USAGE
    found.figures = {"exit_codes": codes}
    for name, code in expected.items():
        found.expect(codes[name] == code, f"{name}: exit code {codes[name]}, not {int(code)}")
    found.summary = ", ".join(f"{name} {code}" for name, code in codes.items())
    return found


def _write_recipe(folder: Path) -> Path:
    """Write settings and data of a small run."""
    numbers = np.random.default_rng(1)
    for split, num_rows in (("train", 512), ("heldout", 32)):
        part = folder / "data" / split / "part.bin"
        part.parent.mkdir(parents=True, exist_ok=True)
        numbers.integers(1, VOCAB_SIZE, num_rows * (ROW_TOKENS + 1), dtype=np.uint16).tofile(part)
    settings: dict[str, Any] = {
        "model": {
            "architecture": "llama",
            "num_layers": 2,
            "hidden_size": 64,
            "ffn_hidden_size": 128,
            "num_attention_heads": 4,
            "vocab_size": VOCAB_SIZE,
        },
        "ponder": {"method": "ponderlm3", "num_latent_thoughts": 2},
        "training": {
            "seq_length": ROW_TOKENS,
            "micro_batch_size": 4,
            "global_batch_size": 4,
            "train_iters": NUM_STEPS,
            "precision": "bf16",
            # Compiling would take longer than the runs.
            "fused": "never",
        },
        "optimizer": {"lr": 1e-3},
        "data": {"path": str(folder / "data"), "format": "rows", "eod_id": 0},
        "evaluation": {"iters": 1},
        "metrics": {"interval": 1, "tensorboard": False},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


def _command(recipe: Path, *overrides: str) -> list[str]:
    return [sys.executable, "-P", "-m", "pipeline.cli", "train", "--config", str(recipe), *overrides]


def _train(recipe: Path, *overrides: str) -> int:
    return subprocess.run(_command(recipe, *overrides), timeout=COMMAND_SECONDS, check=False).returncode


def _stopped(recipe: Path, folder: Path) -> int:
    """Send a stop signal to a run after its first steps; return its exit code."""
    command = _command(recipe, f"output_dir={folder}", "training.train_iters=100000")
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + COMMAND_SECONDS
        while not _losses(folder) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        return process.wait(COMMAND_SECONDS)
    finally:
        process.kill()
        process.wait()


def _losses(folder: Path) -> list[float]:
    """Return the training losses that a run has logged."""
    file = folder / METRICS_FILE
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    return [record[LM_LOSS] for record in records if LM_LOSS in record]
