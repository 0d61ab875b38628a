"""Tiny runs: their settings, and the metrics that they leave in their folders."""

import json
from pathlib import Path
from typing import Any

import yaml

NUM_ITERATIONS = 14
# A vocabulary of 320 is padded to 320 on one rank and to 384 on two.
DIVISOR = 64


def write_recipe(path: Path, *, data: Path) -> Path:
    """Write the settings of a tiny PonderLM-3 on two tensor-parallel ranks, which trains in seconds.

    With its threshold and penalty, tokens halt at every step within the run.
    """
    settings: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "architecture": "llama",
            "num_layers": 2,
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "make_vocab_size_divisible_by": DIVISOR,
            "max_position_embeddings": 64,
        },
        "ponder": {
            "method": "ponderlm3",
            "num_latent_thoughts": 2,
            "num_jacobi_iterations": 2,
            "pruning_threshold": 0.89,
            "penalty_weight": 3.0,
            "penalty_ramp": [0, 2],
        },
        "parallel": {"tensor": 2, "timeout_seconds": 120},
        "training": {
            "seq_length": 32,
            "micro_batch_size": 8,
            "global_batch_size": 8,
            "train_iters": NUM_ITERATIONS,
        },
        "optimizer": {"lr": 1e-2, "min_lr": 1e-3, "lr_warmup_iters": 2, "lr_decay_iters": 20},
        "data": {"path": str(data)},
        "evaluation": {"iters": 4},
        "metrics": {"interval": 1},
    }
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def one_rank(output: Path, *further: str) -> list[str]:
    """Return overrides for a run on one rank with another output folder."""
    return ["parallel.tensor=1", f"output_dir={output}", *further]


def written_events(folder: Path, event: str = "training") -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl in order, repeated iterations included."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [row for row in map(json.loads, lines) if row["event"] == event]


def losses(folder: Path) -> dict[int, float]:
    """Return the training loss by iteration.

    An iteration that was computed twice, before and after an interruption, must have the same loss.
    """
    found: dict[int, float] = {}
    for row in written_events(folder):
        loss = found.setdefault(row["iteration"], row["lm loss"])
        assert loss == row["lm loss"], f"iteration {row['iteration']} was repeated with another loss"
    return found


def data_hashes(folder: Path) -> dict[int, str]:
    """Return the hash of the global batch by iteration."""
    return {row["iteration"]: row["data-hash"] for row in written_events(folder)}


def has_trained(folder: Path, num_iterations: int) -> bool:
    """Return whether a run, which may be writing at this moment, has logged an iteration."""
    path = folder / "metrics.jsonl"
    return path.exists() and f'"iteration": {num_iterations},' in path.read_text(encoding="utf-8")
