"""Rules on what is saved and what a run starts from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.errors import ConfigProblem

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


def _keeping(config: RunConfig) -> Iterator[ConfigProblem]:
    checkpoint = config.checkpoint
    if checkpoint.keep_every is not None and checkpoint.keep_last is None:
        yield ConfigProblem(
            path="checkpoint.keep_every",
            rule="must come with checkpoint.keep_last, without which every checkpoint is kept",
            value=str(checkpoint.keep_every),
            cure="add checkpoint.keep_last: 2, or leave it out",
        )


CHECKPOINT_RULES = (_keeping,)
