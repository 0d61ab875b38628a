"""Telling a job that has failed from a Ray that has failed."""

from ray.job_submission import JobDetails
from ray.job_submission import JobStatus as RayJobStatus

from cluster.job_record import JobRecord, JobState, JobStatus
from cluster.on_ray.jobs_api import UnreachableRayError, ask
from cluster.on_ray.signs import HEARTBEAT_NAME, OUTCOME_NAME, Heartbeat, Outcome, read_sign

# A driver that is busy may be late; one that is much later hangs.
_LATE_SECONDS = 120.0
_STATES = {
    RayJobStatus.PENDING: JobState.QUEUED,
    RayJobStatus.RUNNING: JobState.RUNNING,
    # Both end without an outcome only where the driver could not write one any more.
    RayJobStatus.SUCCEEDED: JobState.DONE,
    RayJobStatus.FAILED: JobState.FAILED,
    RayJobStatus.STOPPED: JobState.CANCELLED,
}


def status_of(record: JobRecord, address: str) -> JobStatus:
    """Return where a job is.

    Its own outcome counts first, so that what has ended is known without Ray. Where there is none, Ray is
    asked; where Ray does not answer, or is another one that does not know the job, the reason says that Ray
    is gone, and when the job was last alive.
    """
    outcome = read_sign(Outcome, record.job_folder / OUTCOME_NAME)
    if outcome is not None:
        return _ended(outcome)
    heartbeat = read_sign(Heartbeat, record.job_folder / HEARTBEAT_NAME)
    try:
        known = ask(address, lambda client: [job for job in client.list_jobs() if _is(job, record)])
    except UnreachableRayError:
        return _without_ray(heartbeat, JobState.UNKNOWN, f"Ray itself does not answer at {address}")
    if not known:
        reason = f"the Ray at {address} does not know the job: it is another one, or was started anew"
        return _without_ray(heartbeat, JobState.FAILED, reason)
    return _as_ray_says(known[0], heartbeat)


def _is(job: JobDetails, record: JobRecord) -> bool:
    return bool(job.submission_id == record.handle)


def _ended(outcome: Outcome) -> JobStatus:
    failed = JobState.CANCELLED if outcome.is_cancelled else JobState.FAILED
    return JobStatus(
        state=JobState.DONE if outcome.exit_code == 0 else failed,
        reason=outcome.reason,
        exit_code=outcome.exit_code,
        requeues=outcome.restarts,
        nodes=outcome.hosts,
    )


def _without_ray(heartbeat: Heartbeat | None, state: JobState, reason: str) -> JobStatus:
    if heartbeat is None:
        life = "the job has left no sign of life"
    else:
        life = f"the job was last alive {heartbeat.age_seconds:.0f} s ago ({heartbeat.activity})"
    return JobStatus(
        state=state,
        reason=f"{reason}; {life}; once Ray runs, `megaponder jobs requeue` goes on from the last checkpoint",
        requeues=0 if heartbeat is None else heartbeat.restarts,
        nodes=() if heartbeat is None else heartbeat.hosts,
    )


def _as_ray_says(job: JobDetails, heartbeat: Heartbeat | None) -> JobStatus:
    state = _STATES[job.status]
    if state == JobState.RUNNING and (heartbeat is None or not heartbeat.hosts):
        # The driver waits, for room or for other jobs.
        state = JobState.QUEUED
    if state == JobState.CANCELLED:
        reason = "told to end, and did before it could write how"
    elif state.is_final:
        reason = f"Ray runs, but the job's driver ended without a word: {job.message}"
    elif heartbeat is None:
        reason = job.message or ""
    elif heartbeat.age_seconds > _LATE_SECONDS:
        reason = f"no sign of life for {heartbeat.age_seconds:.0f} s, before: {heartbeat.activity}"
    else:
        reason = heartbeat.activity
    return JobStatus(
        state=state,
        reason=reason,
        exit_code=job.driver_exit_code,
        requeues=0 if heartbeat is None else heartbeat.restarts,
        nodes=() if heartbeat is None else heartbeat.hosts,
    )
