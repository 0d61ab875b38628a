"""Rules on checkpoints and on the initial weights."""

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
            rule="requires checkpoint.keep_last, without which every checkpoint is kept",
            value=str(checkpoint.keep_every),
            cure="add checkpoint.keep_last: 2, or remove it",
        )


def _start(config: RunConfig) -> Iterator[ConfigProblem]:
    start = config.init_from
    if start.path is None:
        for name in ("format", "iteration", "method", "allow_unused", "ignore"):
            value = getattr(start, name)
            # Not `in (None, False, ...)`: iteration 0 equals False.
            if value is not None and value is not False and value not in ("native", ()):
                yield ConfigProblem(
                    path=f"init_from.{name}",
                    rule="requires init_from.path, without which weights are initialized at random",
                    value=str(value),
                    cure="give the folder of a model, or remove it",
                )
    elif start.method is None:
        is_native = start.format == "native"
        yield ConfigProblem(
            path="init_from.method",
            rule="must be given with init_from.path: the method of the initial model",
            value="not given",
            cure=f"see ponder.method in the run_config.yaml in {start.path}"
            if is_native
            else "vanilla, unless the folder holds a pondering model",
        )


def _start_format(config: RunConfig) -> Iterator[ConfigProblem]:
    start = config.init_from
    if start.path is None:
        return
    if start.format == "hf" and start.iteration is not None:
        yield ConfigProblem(
            path="init_from.iteration",
            rule="must not be given with init_from.format: hf, whose folder holds one model",
            value=str(start.iteration),
            cure="remove it",
        )
    if start.format == "native" and start.ignore:
        yield ConfigProblem(
            path="init_from.ignore",
            rule="requires init_from.format: hf, as it lists keys of a config.json",
            value=", ".join(start.ignore),
            cure="remove it",
        )


def _start_of_method(config: RunConfig) -> Iterator[ConfigProblem]:
    start, target = config.init_from, config.ponder.method
    if start.path is None or start.method is None or start.method == target:
        return
    possible = (target, *target.facts.continues)
    if start.method not in possible:
        yield ConfigProblem(
            path="init_from.method",
            rule=f"must be a method that {target} can start from",
            value=start.method,
            cure=f"start from {' or '.join(possible)}",
        )
    elif target.facts.has_pause_tokens and config.ponder.pause_token_id is None:
        yield ConfigProblem(
            path="ponder.pause_token_id",
            rule=f"must be a row of the embedding that the {start.method} run has trained",
            value="not given",
            cure="give the id of a token that the data does not use",
        )


CHECKPOINT_RULES = (_keeping, _start, _start_format, _start_of_method)
