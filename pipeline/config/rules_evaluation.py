"""Rules on evaluation while training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.errors import ConfigProblem, as_written

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


def _thresholds_need_halting(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.evaluation.sweep_tau and not config.ponder.method.halts:
        yield ConfigProblem(
            path="evaluation.sweep_tau",
            rule=f"must be left out for ponder.method {config.ponder.method}, whose tokens do not halt",
            value=as_written(config.evaluation.sweep_tau),
            cure="leave it out; it belongs to ponderlm3 and adaponderlm",
        )


def _steps_may_change(config: RunConfig) -> Iterator[ConfigProblem]:
    if config.evaluation.sweep_steps and config.ponder.multiply_embedding:
        yield ConfigProblem(
            path="evaluation.sweep_steps",
            rule="must be false where ponder.multiply_embedding is true: such a model starts from its own K",
            value="true",
            cure="leave it out",
        )


EVALUATION_RULES = (_thresholds_need_halting, _steps_may_change)
