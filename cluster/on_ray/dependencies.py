"""Waiting for other jobs of the same cluster: Ray starts every job at once."""

import time
from collections.abc import Callable, Sequence

from ray.job_submission import JobStatus

from cluster.on_ray.jobs_api import BoundedClient
from cluster.patience import DEFAULT_SECONDS
from pipeline.shared.errors import ClusterError

_POLL_SECONDS = 2.0
_PREFIX = "ray:"


def wait_for_dependencies(jobs: Sequence[str], *, until: Callable[[], bool]) -> bool:
    """Wait until other jobs have succeeded.

    Args:
        jobs: their ids, such as `ray:20261122-...`.
        until: whether this job has received a stop signal.

    Returns:
        whether all have succeeded; False where this job has received a stop signal.

    Raises:
        ClusterError: one has failed or is unknown.
    """
    waiting = [job.removeprefix(_PREFIX) for job in jobs]
    responded_at = time.monotonic()
    while waiting:
        if until():
            return False
        try:
            waiting = [job for job in waiting if not _has_succeeded(job)]
            responded_at = time.monotonic()
        except OSError as error:
            if time.monotonic() - responded_at > DEFAULT_SECONDS:
                raise ClusterError(
                    f"the Ray of this job must respond within {DEFAULT_SECONDS:.0f} s, but does not ({error})"
                    "; `megaponder jobs requeue` submits the job again"
                ) from error
        if waiting:
            time.sleep(_POLL_SECONDS)
    return True


def _has_succeeded(job: str) -> bool:
    try:
        # Of the Ray that runs this job, which its environment names.
        status = BoundedClient().get_job_status(job)
    except OSError:
        raise
    except RuntimeError as error:
        raise ClusterError(
            f"a job to wait for must be known to this Ray, but {job} is not ({error}); submit it first"
        ) from error
    if status in (JobStatus.FAILED, JobStatus.STOPPED):
        raise ClusterError(
            f"the job to wait for must succeed, but {job} is {status}; see why, and submit both again"
        )
    return bool(status == JobStatus.SUCCEEDED)
