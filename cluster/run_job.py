"""The job that trains a run, made from its configuration."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.job_record import new_job_folder
from cluster.job_spec import Container, JobSpec, Queue, RequeuePolicy, Resources, SweepMember
from cluster.lead_time import signal_lead_seconds
from cluster.preflight import planned_step_seconds
from pipeline.config.schema import RunConfig
from pipeline.config.submit_section import SubmitSection
from pipeline.shared.files import resolved_output
from pipeline.shared.python_start import SAFE_PATH, python_module, python_variables

CONFIG_NAME = "config.yaml"


def training_job(
    config: RunConfig, *, dependencies: Sequence[str] = (), sweep: Sequence[SweepMember] = ()
) -> JobSpec:
    """Describe the job that trains a run; write nothing.

    Args:
        config: of the run. The job reads a copy in its own folder, so that later edits do not reach it.
        dependencies: ids of jobs that must have succeeded first.
        sweep: the run of each job of an array.
    """
    submit = config.submit
    run_folder = resolved_output(config.output_dir)
    job_folder = new_job_folder(run_folder, "train")
    return JobSpec(
        name=config.name,
        command=(*program(submit), "train", "--config", str(job_folder / CONFIG_NAME)),
        run_folder=run_folder,
        job_folder=job_folder,
        working_directory=Path.cwd(),
        resources=Resources(
            nodes=submit.nodes,
            ranks_per_node=config.parallel.world_size // submit.nodes,
            gpus_per_node=submit.gpus_per_node,
            cpus_per_rank=submit.cpus_per_rank,
            memory_per_node=submit.memory_per_node,
            wall_time=submit.wall_time,
        ),
        queue=queue_of(submit),
        container=container_of(submit, (run_folder, *config.data.training_paths)),
        environment=tuple(sorted(_environment(submit).items())),
        secrets=submit.secrets,
        setup=submit.setup,
        dependencies=tuple(dependencies),
        requeue=RequeuePolicy(
            max_requeues=submit.max_requeues,
            signal_lead_seconds=submit.signal_lead_seconds
            or signal_lead_seconds(
                run_folder,
                wall_time=submit.wall_time,
                planned_step_seconds=planned_step_seconds(config),
            ),
        ),
        chain=submit.chain,
        sweep=tuple(sweep),
        start_timeout_seconds=submit.start_timeout_seconds,
        heartbeat_seconds=submit.heartbeat_seconds,
    )


def program(submit: SubmitSection) -> tuple[str, ...]:
    """Return the command that starts `megaponder` on a node."""
    python = submit.python or (sys.executable if submit.container is None else "python")
    return (python, *python_module("pipeline.cli"))


def _environment(submit: SubmitSection) -> dict[str, str]:
    """Return the variables of every rank: the user's, and those with which Python finds this program."""
    if submit.container is not None:
        return submit.environment | SAFE_PATH
    # Ray starts jobs in the environment of its own nodes, the others in that of `submit`.
    inherited = {} if submit.target == "ray" else {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return submit.environment | python_variables(inherited | submit.environment)


def queue_of(submit: SubmitSection) -> Queue:
    """Return the queue of the job."""
    return Queue(
        partition=submit.partition,
        account=submit.account,
        qos=submit.qos,
        constraint=submit.constraint,
        options=submit.options,
    )


def container_of(submit: SubmitSection, folders: Sequence[Path]) -> Container | None:
    """Return the image of the ranks, with the run's own folders mounted where they are."""
    if submit.container is None:
        return None
    own = [f"{folder.resolve()}:{folder.resolve()}" for folder in folders]
    mounts = dict.fromkeys([*own, *submit.container.mounts])
    return Container(image=submit.container.image, runtime=submit.container.runtime, mounts=tuple(mounts))
