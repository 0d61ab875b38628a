"""Choosing and checking the steps of a workflow that are to run, each after those it needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.job_spec import JobSpec
from cluster.preflight import check_run
from cluster.run_job import CONFIG_NAME
from cluster.running import refuse_unfinished
from cluster.workflow.identity import identity_of_checkpoint
from cluster.workflow.job import job_name, step_job
from cluster.workflow.todo import PlannedStep, plan_steps
from cluster.workflow.work import prepared_folder, work_of
from pipeline.config.errors import ConfigError, ConfigProblem
from pipeline.config.schema import RunConfig
from pipeline.config.workflow_section import PrepareStep, WorkflowStep
from pipeline.shared.errors import ClusterError


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which steps of a workflow are considered.

    Attributes:
        only: this one alone; None: all.
        again_from: this one, and the steps that need its output, run although they are done.
    """

    only: str | None = None
    again_from: str | None = None


def plan_workflow(config: RunConfig, choice: Choice) -> tuple[PlannedStep, ...]:
    """Compare the steps with their last runs and decide which ones run.

    Raises:
        ClusterError: the choice names no step, or a marker cannot be read.
        DataError: there is no text to prepare.
        ConfigError: an input is missing and no step makes it.
    """
    names = [step.name for step in config.workflow]
    for name in (choice.only, choice.again_from):
        if name is not None and name not in names:
            raise ClusterError(f"a step must be one of {', '.join(names)}, but is {name}")
    considered = [step for step in config.workflow if choice.only in (None, step.name)]
    works = [work_of(config, step, Path(CONFIG_NAME)) for step in considered]
    again = () if choice.again_from is None else (choice.again_from,)
    planned = plan_steps([work.state(config.output_dir) for work in works], again=again)
    _check(config, planned)
    return planned


def step_to_job(
    config: RunConfig, planned: PlannedStep, choice: Choice, *, dependencies: Sequence[str]
) -> JobSpec:
    """Describe the job of a planned step."""
    return step_job(
        config,
        _step_named(config, planned.name),
        dependencies=dependencies,
        again=planned.name == choice.again_from,
    )


def refuse_running(config: RunConfig, planned: Sequence[PlannedStep], *, after: Sequence[str]) -> None:
    """Raise an error if a job of a step that runs has not ended; see `cluster.running`."""
    wanted = [job_name(config, _step_named(config, step.name)) for step in planned if step.reason]
    # A link of a chain has its number behind the name.
    refuse_unfinished(
        config.output_dir, after=after, is_meant=lambda record: record.name.partition(" (")[0] in wanted
    )


def _check(config: RunConfig, planned: Sequence[PlannedStep]) -> None:
    steps = [_step_named(config, step.name) for step in planned if step.reason is not None]
    commands = {step.command for step in steps}
    for step in steps:
        if isinstance(step, PrepareStep) and step.tokenizer is not None:
            _check_tokenizer(step.name, step.tokenizer)
    if "train" in commands:
        made = {prepared_folder(config, step) for step in steps if isinstance(step, PrepareStep)}
        check_run(config, expects_data=made.isdisjoint(config.data.training_paths))
    elif {"evaluate", "generate", "export"} & commands:
        _check_checkpoint(config)


def _check_tokenizer(step: str, tokenizer: Path) -> None:
    if not tokenizer.is_file():
        problem = ConfigProblem(
            path=f"workflow ({step}).tokenizer",
            rule="must be a file before a job is queued that reads it",
            value=f"{tokenizer}, which does not exist",
            cure="make one with megaponder tokenizer train, or copy a tokenizer.json",
        )
        raise ConfigError([problem])


def _check_checkpoint(config: RunConfig) -> None:
    if identity_of_checkpoint(config.checkpoint_directory) is None:
        problem = ConfigProblem(
            path="workflow",
            rule="must have a checkpoint to evaluate and export, or train one",
            value=f"none in {config.checkpoint_directory}",
            cure="add `- command: train`, or submit it before",
        )
        raise ConfigError([problem])


def _step_named(config: RunConfig, name: str) -> WorkflowStep:
    return next(step for step in config.workflow if step.name == name)
