"""Rules on what a submission requests of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from pydantic import BaseModel

from pipeline.config.errors import ConfigProblem
from pipeline.config.submit_section import (
    VARIABLE_NAME,
    has_control_characters,
    is_reserved_variable,
    wall_seconds,
)

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig


def _ranks_on_nodes(config: RunConfig) -> Iterator[ConfigProblem]:
    parallel, submit = config.parallel, config.submit
    ranks = parallel.world_size
    if ranks % submit.nodes:
        yield ConfigProblem(
            path="submit.nodes",
            rule=f"must divide the number of ranks, parallel.tensor x context x pipeline x data ({ranks})",
            value=str(submit.nodes),
            cure="change it, or parallel.data",
        )
    elif submit.gpus_per_node not in (0, ranks // submit.nodes):
        yield ConfigProblem(
            path="submit.gpus_per_node",
            rule=f"must be one for each of a node's ranks ({ranks // submit.nodes}), or 0 for the CPU",
            value=str(submit.gpus_per_node),
            cure=f"set it to {ranks // submit.nodes}, or change submit.nodes or parallel.data",
        )


def _local(config: RunConfig) -> Iterator[ConfigProblem]:
    submit = config.submit
    if submit.target == "local" and submit.nodes > 1:
        yield ConfigProblem(
            path="submit.nodes",
            rule="must be 1 if submit.target is local",
            value=str(submit.nodes),
            cure="submit to slurm or ray, or set it to 1",
        )


def _chain(config: RunConfig) -> Iterator[ConfigProblem]:
    submit = config.submit
    if submit.chain > 1 and (submit.target != "slurm" or submit.wall_time is None):
        yield ConfigProblem(
            path="submit.chain",
            rule="needs submit.target slurm and a submit.wall_time, which ends a job of the chain",
            value=f"{submit.chain} with target {submit.target}, "
            + ("no wall_time" if submit.wall_time is None else f"wall_time {submit.wall_time}"),
            cure="set both, or remove it",
        )


def _lead(config: RunConfig) -> Iterator[ConfigProblem]:
    submit = config.submit
    lead, wall_time = submit.signal_lead_seconds, submit.wall_time
    if lead is not None and wall_time is not None and lead >= wall_seconds(wall_time):
        yield ConfigProblem(
            path="submit.signal_lead_seconds",
            rule=f"must be shorter than submit.wall_time ({wall_time})",
            value=str(lead),
            cure="remove it; the default is derived from steps and saves of the run",
        )


def _variables(config: RunConfig) -> Iterator[ConfigProblem]:
    for name in config.submit.environment:
        is_name = VARIABLE_NAME.fullmatch(name) is not None
        if is_name and not is_reserved_variable(name):
            continue
        yield ConfigProblem(
            path="submit.environment",
            rule="must have names of letters, digits and _, which do not belong to the job itself",
            value=repr(name),
            cure="set such a variable in a line of submit.setup"
            if is_name
            else "give the value after the name",
        )


def _paths(config: RunConfig) -> Iterator[ConfigProblem]:
    for name, path in _paths_in(config, ""):
        if has_control_characters(str(path)):
            yield ConfigProblem(
                path=name,
                rule="must have no control characters, such as the end of a line",
                value=repr(str(path)),
                cure="give it another name",
            )


def _paths_in(value: object, name: str) -> Iterator[tuple[str, Path]]:
    """Yield all paths among settings, with their dotted names."""
    if isinstance(value, Path):
        yield name, value
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _paths_in(item, f"{name}.{index}")
    elif isinstance(value, BaseModel | SimpleNamespace):
        for key, item in vars(value).items():
            yield from _paths_in(item, f"{name}.{key}".lstrip("."))


SUBMIT_RULES = (_ranks_on_nodes, _local, _chain, _lead, _variables, _paths)
