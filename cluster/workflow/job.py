"""From a stage to its job."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cluster.job_record import new_job_folder
from cluster.job_spec import JobSpec, Resources
from cluster.run_job import CONFIG_NAME, container_of, program, training_job
from cluster.workflow.work import StageWork, work_of
from pipeline.config.schema import RunConfig
from pipeline.config.workflow_section import PrepareStage, Stage

_MODULE = "cluster.workflow.run_step"
# Stands for HOST:PORT of the head in a job of kind `driver`; see `cluster.on_ray.job_file`.
_RAY_ADDRESS = "{ray_address}"


def job_name(config: RunConfig, stage: Stage) -> str:
    """Return the name of a stage's jobs."""
    return f"{config.name}-{stage.name}"


def stage_job(
    config: RunConfig, stage: Stage, *, dependencies: Sequence[str] = (), again: bool = False
) -> JobSpec:
    """Describe the job of a stage; nothing is written.

    Args:
        config: of the run.
        stage: one of its stages.
        dependencies: ids of jobs that must have succeeded first.
        again: run it although it is done.
    """
    training = training_job(config, dependencies=dependencies)
    folder = new_job_folder(training.run_folder, stage.name)
    work = work_of(config, stage, folder / CONFIG_NAME)
    python, *_ = program(config.submit)
    runs_on_ray = _prepares_on_ray(config, stage)
    return replace(
        training,
        name=job_name(config, stage),
        command=(
            *(python, "-m", _MODULE, stage.name, "--config", str(folder / CONFIG_NAME)),
            *(["--again"] if again else ()),
            *(["--ray-address", _RAY_ADDRESS] if runs_on_ray else ()),
        ),
        job_folder=folder,
        resources=_resources(training.resources, stage),
        queue=replace(
            training.queue,
            partition=stage.submit.partition or training.queue.partition,
            qos=stage.submit.qos or training.queue.qos,
        ),
        container=container_of(config.submit, _folders(config, work)),
        chain=training.chain if stage.command == "train" else 1,
        kind="driver" if runs_on_ray else "ranks",
    )


def _resources(of_run: Resources, stage: Stage) -> Resources:
    asked = stage.submit.model_dump(exclude={"partition", "qos"})
    given = {name: value for name, value in asked.items() if value is not None}
    if stage.command == "train":
        return replace(of_run, **given)
    gpus = min(of_run.gpus_per_node, 1) if stage.command == "evaluate" else 0
    return replace(of_run, **{"nodes": 1, "ranks_per_node": 1, "gpus_per_node": gpus, **given})


def _prepares_on_ray(config: RunConfig, stage: Stage) -> bool:
    return config.submit.target == "ray" and isinstance(stage, PrepareStage) and stage.workers > 0


def _folders(config: RunConfig, work: StageWork) -> tuple[Path, ...]:
    own = (config.output_dir, config.checkpoint_directory, *config.data.training_paths, *work.folders)
    return tuple(dict.fromkeys(folder.resolve() for folder in own))
