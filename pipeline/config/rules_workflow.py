"""Rules on the workflow of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipeline.config.errors import ConfigProblem

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig

# Evaluation, generation and export all follow the training, in any order.
_PLACES = {"tokenizer": 0, "prepare": 1, "train": 2, "evaluate": 3, "generate": 3, "export": 3, "report": 4}
_ONLY_ONE = ("tokenizer", "train", "report")


def _names(config: RunConfig) -> Iterator[ConfigProblem]:
    counts = Counter(step.name for step in config.workflow)
    for name, count in counts.items():
        if count > 1:
            yield ConfigProblem(
                path="workflow",
                rule="must have steps with different names",
                value=f"{count} called {name}",
                cure="give them names, as in name: prepare-books",
            )


def _order(config: RunConfig) -> Iterator[ConfigProblem]:
    commands: list[str] = [step.command for step in config.workflow]
    if commands != sorted(commands, key=_PLACES.__getitem__):
        yield ConfigProblem(
            path="workflow",
            rule=f"must be in the order {', '.join(_PLACES)}",
            value=", ".join(commands),
            cure="reorder them",
        )
    for command in _ONLY_ONE:
        if commands.count(command) > 1:
            yield ConfigProblem(
                path="workflow",
                rule=f"must have one {command} at most",
                value=f"{commands.count(command)} of them",
                cure="write a file for each",
            )


def _text(config: RunConfig) -> Iterator[ConfigProblem]:
    for number, step in enumerate(config.workflow):
        if step.command in ("tokenizer", "prepare") and bool(step.inputs) == step.python_stdlib:
            yield ConfigProblem(
                path=f"workflow.{number}.inputs",
                rule="must be given, or python_stdlib be true, one of the two",
                value="both" if step.inputs else "neither",
                cure="name files or folders of text",
            )


def _tokenizer(config: RunConfig) -> Iterator[ConfigProblem]:
    trains_one = any(step.command == "tokenizer" for step in config.workflow)
    for number, step in enumerate(config.workflow):
        if step.command == "prepare" and step.tokenizer is None and not trains_one:
            yield ConfigProblem(
                path=f"workflow.{number}.tokenizer",
                rule="must be a file where no step trains one",
                value="absent",
                cure="name one, or add `- command: tokenizer`",
            )


def _prepared_data(config: RunConfig) -> Iterator[ConfigProblem]:
    data = config.data
    sources = [source.path for source in data.sources or ()]
    read = {path for path in (data.path, data.heldout_path, *sources) if path is not None}
    for number, step in enumerate(config.workflow):
        if step.command != "prepare":
            continue
        output = step.output or data.path
        if output not in read:
            yield ConfigProblem(
                path=f"workflow.{number}.output",
                rule="must be a folder that the run reads: data.path, heldout_path or one of data.sources",
                value="absent" if output is None else str(output),
                cure=f"write {' or '.join(sorted(map(str, read)))}",
            )


def _whole_training(config: RunConfig) -> Iterator[ConfigProblem]:
    training = config.training
    stops_early = training.exit_interval is not None or training.exit_duration_in_mins is not None
    if stops_early and any(step.command == "train" for step in config.workflow):
        yield ConfigProblem(
            path="workflow",
            rule="must train without training.exit_interval and exit_duration_in_mins: the next steps would "
            "use the model of an unfinished training",
            value="given",
            cure="remove them; submit.wall_time and submit.max_requeues do the same for jobs",
        )


def _gpus_of_training(config: RunConfig) -> Iterator[ConfigProblem]:
    for number, step in enumerate(config.workflow):
        if step.command == "train" and step.submit.gpus_per_node is not None:
            yield ConfigProblem(
                path=f"workflow.{number}.submit.gpus_per_node",
                rule="must be absent for train, which has one for each rank",
                value=str(step.submit.gpus_per_node),
                cure="set submit.gpus_per_node",
            )


WORKFLOW_RULES = (_names, _order, _text, _tokenizer, _prepared_data, _whole_training, _gpus_of_training)
