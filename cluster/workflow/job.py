"""The job of a workflow step."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster.job_record import new_job_folder
from cluster.job_spec import JobSpec, Resources
from cluster.run_job import CONFIG_NAME, container_of, program, training_job
from cluster.workflow.work import StepWork, work_of
from pipeline.config.schema import RunConfig
from pipeline.config.workflow_section import PrepareStep, WorkflowStep
from pipeline.shared.files import resolved_output
from pipeline.shared.python_start import python_module

_MODULE = "cluster.workflow.run_step"
# Stands for HOST:PORT of the head in a job of kind `driver`; see `cluster.on_ray.job_file`.
_RAY_ADDRESS = "{ray_address}"


def job_name(config: RunConfig, step: WorkflowStep) -> str:
    """Return the name of a step's jobs."""
    return f"{config.name}-{step.name}"


def step_job(
    config: RunConfig, step: WorkflowStep, *, dependencies: Sequence[str] = (), again: bool = False
) -> JobSpec:
    """Describe the job of a step; write nothing.

    Args:
        config: of the run.
        step: of its workflow.
        dependencies: ids of jobs that must have succeeded first.
        again: run the step although it is done.
    """
    training = training_job(config, dependencies=dependencies)
    folder = new_job_folder(training.run_folder, step.name)
    work = work_of(config, step, folder / CONFIG_NAME)
    python, *_ = program(config.submit)
    runs_on_ray = _prepares_on_ray(config, step)
    return replace(
        training,
        name=job_name(config, step),
        command=(
            *(python, *python_module(_MODULE), step.name, "--config", str(folder / CONFIG_NAME)),
            *(["--again"] if again else ()),
            *(["--ray-address", _RAY_ADDRESS] if runs_on_ray else ()),
        ),
        job_folder=folder,
        resources=_resources(training.resources, step),
        queue=replace(
            training.queue,
            partition=step.submit.partition or training.queue.partition,
            qos=step.submit.qos or training.queue.qos,
        ),
        container=container_of(config.submit, _folders(config, work)),
        chain=training.chain if step.command == "train" else 1,
        kind="driver" if runs_on_ray else "ranks",
    )


def _resources(of_run: Resources, step: WorkflowStep) -> Resources:
    requested = step.submit.model_dump(exclude={"partition", "qos"})
    given = {name: value for name, value in requested.items() if value is not None}
    if step.command == "train":
        return replace(of_run, **given)
    gpus = min(of_run.gpus_per_node, 1) if step.command in ("evaluate", "generate") else 0
    return replace(of_run, **{"nodes": 1, "ranks_per_node": 1, "gpus_per_node": gpus, **given})


def _prepares_on_ray(config: RunConfig, step: WorkflowStep) -> bool:
    return config.submit.target == "ray" and isinstance(step, PrepareStep) and step.workers > 0


def _folders(config: RunConfig, work: StepWork) -> tuple[Path, ...]:
    own = (config.output_dir, config.checkpoint_directory, *config.data.training_paths, *work.folders)
    return tuple(dict.fromkeys(resolved_output(folder) for folder in own))
