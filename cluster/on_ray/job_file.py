"""A job as it is passed to Ray: a file that its driver reads, and the request that starts the driver."""

import json
import shlex
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.job_spec import JobSpec
from pipeline.shared.errors import ClusterError
from pipeline.shared.python_start import python_module
from pipeline.shared.secrets import mask_variable

JOB_FILE_NAME = "ray_job.json"
# In the command of a job of kind `driver`: HOST:PORT of the cluster's head, known only where the job runs.
RAY_ADDRESS_WORD = "{ray_address}"
_JOB = TypeAdapter(JobSpec)


def render_job(job: JobSpec) -> str:
    """Return a job as the text of the file that its driver reads."""
    return json.dumps(_JOB.dump_python(job, mode="json"), indent=2) + "\n"


def load_job(path: Path) -> JobSpec:
    """Read a job that was submitted.

    Raises:
        ClusterError: the file is missing or does not contain one.
    """
    try:
        return _JOB.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ClusterError(
            f"{path} must be a job as it was submitted to Ray, but cannot be read ({error}); submit it again"
        ) from error


def submission_of(job: JobSpec, start: int = 0) -> dict[str, Any]:
    """Return the request to the Jobs API, as a pure function of the job.

    Args:
        job: what is submitted; its file is in its folder.
        start: how often it was submitted before; Ray requires another id each time.
    """
    words = (
        *(job.command[0], *python_module("cluster.on_ray.driver")),
        str(job.job_folder / JOB_FILE_NAME),
    )
    return {
        # exec: the driver, not a shell, receives the stop signal. cd: Ray lets its workers import from the
        # driver's folder, and in this one nobody keeps Python files.
        "entrypoint": f"cd {shlex.quote(str(job.job_folder))} && exec {shlex.join(words)}",
        "submission_id": job.job_folder.name + (f"-again{start}" if start else ""),
        "metadata": {"name": job.name, "job_folder": str(job.job_folder)},
        "runtime_env": {
            "env_vars": {
                **_shown_variables(job),
                "RAY_USAGE_STATS_ENABLED": "0",
                # Ray reads it where it stops the driver; its own default, 3 s, is too short for a checkpoint.
                "RAY_JOB_STOP_WAIT_TIME_S": str(job.requeue.signal_lead_seconds),
            }
        },
    }


def _shown_variables(job: JobSpec) -> dict[str, str]:
    """Return the variables that everyone who can see the dashboard may see.

    Ranks get all of them from the driver, which reads them in its file. What a job of kind `driver` requests
    of Ray has no other way to get them.
    """
    return {
        name: value
        for name, value in job.environment
        if job.kind == "driver" or mask_variable(name, value, job.secrets) == value
    }
