"""Rules on the learning rate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.errors import ConfigProblem

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


def _learning_rate(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.optimizer.min_lr > config.optimizer.lr:
        yield ConfigProblem(
            path="optimizer.min_lr",
            rule=f"must be at most optimizer.lr ({config.optimizer.lr})",
            value=str(config.optimizer.min_lr),
            cure=f"try {config.optimizer.lr / 10}",
        )


def _warmup(config: RunConfig) -> Iterator[ConfigProblem]:
    optimizer = config.optimizer
    decay_iters = optimizer.lr_decay_iters or config.training.train_iters
    limit = min(decay_iters, config.training.train_iters)
    if optimizer.lr_warmup_iters >= limit:
        yield ConfigProblem(
            path="optimizer.lr_warmup_iters",
            rule=f"must be below training.train_iters and optimizer.lr_decay_iters ({limit})",
            value=str(optimizer.lr_warmup_iters),
            cure=f"try {limit // 10}",
        )


def _warmup_stable_decay(config: RunConfig) -> Iterator[ConfigProblem]:
    optimizer = config.optimizer
    if optimizer.lr_decay_style != "wsd":
        return
    decay_end = optimizer.lr_decay_iters or config.training.train_iters
    room = decay_end - optimizer.lr_warmup_iters
    if optimizer.wsd_decay_iters is None or optimizer.wsd_decay_iters > room:
        yield ConfigProblem(
            path="optimizer.wsd_decay_iters",
            rule=f"must be given for lr_decay_style wsd and fit behind the warm-up (at most {room})",
            value="not given" if optimizer.wsd_decay_iters is None else str(optimizer.wsd_decay_iters),
            cure=f"try {max(1, room // 5)}",
        )


TRAINING_RULES = (_learning_rate, _warmup, _warmup_stable_decay)
