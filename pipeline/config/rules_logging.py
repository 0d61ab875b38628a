"""Rules on where metrics go, and on what is profiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.errors import ConfigProblem, as_written

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


def _sinks(config: RunConfig) -> Iterator[ConfigProblem]:
    sinks = config.metrics.sinks
    if len(set(sinks)) < len(sinks):
        yield ConfigProblem(
            path="metrics.sinks",
            rule="must name each sink once",
            value=", ".join(sinks),
            cure=f"try [{', '.join(dict.fromkeys(sinks))}]",
        )


def _profiled_steps(config: RunConfig) -> Iterator[ConfigProblem]:
    steps, last = config.profile.steps, config.training.train_iters
    if steps is not None and not steps[0] <= steps[1] <= last:
        yield ConfigProblem(
            path="profile.steps",
            rule=f"must be a first and a last iteration of the run, which has {last}",
            value=as_written(steps),
            cure=f"try [{min(3, last)}, {min(5, last)}]",
        )


def _profiled_ranks(config: RunConfig) -> Iterator[ConfigProblem]:
    ranks, parallel = config.profile.ranks, config.parallel
    num_ranks = parallel.tensor * parallel.pipeline * parallel.data
    if config.profile.steps is not None and (max(ranks) >= num_ranks or len(set(ranks)) < len(ranks)):
        yield ConfigProblem(
            path="profile.ranks",
            rule=f"must be different ranks of the run, 0 to {num_ranks - 1}",
            value=as_written(ranks),
            cure="try [0]",
        )


LOGGING_RULES = (_sinks, _profiled_steps, _profiled_ranks)
