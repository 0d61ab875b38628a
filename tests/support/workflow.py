"""A run of four steps, tiny enough to go from text to an exported model in seconds."""

from pathlib import Path
from typing import Any

import yaml

from tests.support.corpus import train_small_tokenizer, write_corpus

NAMES = ("prepare", "train", "evaluate", "export")


def write_pipeline(folder: Path, **groups: dict[str, Any]) -> Path:
    """Write text, a tokenizer and the settings of a vanilla run with all steps, for one rank.

    Args:
        folder: empty or absent; everything goes there.
        groups: settings over those of the run, by group.
    """
    source = write_corpus(folder / "text")
    tokenizer = train_small_tokenizer(source, folder / "tokenizer.model")
    settings: dict[str, Any] = {
        "name": "tiny",
        "output_dir": str(folder / "runs" / "tiny"),
        "model": {
            "architecture": "llama",
            "num_layers": 2,
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "num_attention_heads": 4,
            "make_vocab_size_divisible_by": 64,
            "max_position_embeddings": 64,
        },
        "ponder": {"method": "vanilla"},
        "training": {"seq_length": 32, "micro_batch_size": 4, "global_batch_size": 4, "train_iters": 6},
        "optimizer": {"lr": 1e-2},
        "data": {"path": str(folder / "data")},
        "evaluation": {"iters": 2},
        "metrics": {"interval": 1, "tensorboard": False},
        "checkpoint": {"interval": 2},
        "workflow": [
            {
                "command": "prepare",
                "inputs": [str(folder / "text")],
                "tokenizer": str(tokenizer),
                "heldout_fraction": 0.3,
                "workers": 0,
            },
            {"command": "train"},
            {"command": "evaluate"},
            {"command": "export"},
        ],
    }
    for name, values in groups.items():
        settings[name] = {**settings.get(name, {}), **values}
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path
