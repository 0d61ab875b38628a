"""A small valid configuration as plain values, for tests to change."""

from typing import Any

import pytest

from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.load import build_config


def valid_settings() -> dict[str, Any]:
    """Return a llama with latent thoughts that satisfies every rule."""
    return {
        "model": {
            "architecture": "llama",
            "num_layers": 2,
            "hidden_size": 64,
            "ffn_hidden_size": 176,
            "num_attention_heads": 4,
        },
        "ponder": {"method": "ponderlm3", "num_latent_thoughts": 2},
        "training": {"seq_length": 64, "micro_batch_size": 4, "global_batch_size": 8, "train_iters": 100},
        "optimizer": {"lr": 1e-3},
        "data": {"path": "runs/data"},
    }


def changed_settings(**changes: Any) -> dict[str, Any]:
    """Return the valid settings with some replaced: `parallel__tensor=3` sets `parallel.tensor`."""
    settings = valid_settings()
    for name, value in changes.items():
        *groups, leaf = name.split("__")
        target = settings
        for group in groups:
            target = target.setdefault(group, {})
        target[leaf] = value
    return settings


def problems_of(**changes: Any) -> list[ConfigProblem]:
    """Return what is wrong with the valid settings after some changes."""
    with pytest.raises(ConfigError) as caught:
        build_config(changed_settings(**changes))
    return list(caught.value.problems)
