"""The status of a job on Ray, which tells a failed job from a failed Ray."""

from ray.job_submission import JobDetails
from ray.job_submission import JobStatus as RayJobStatus

from cluster.job_files import JobEnd, load_end, num_requeues
from cluster.job_record import JobRecord, JobState, JobStatus
from cluster.on_ray.heartbeat import Heartbeat, load_heartbeat
from cluster.on_ray.jobs_api import UnreachableRayError, ask

# A busy driver may be late; one that is later than this hangs.
_LATE_SECONDS = 120.0
_STATES = {
    RayJobStatus.PENDING: JobState.QUEUED,
    RayJobStatus.RUNNING: JobState.RUNNING,
    # A job that ended without an `end.json`: its driver could no longer write one.
    RayJobStatus.SUCCEEDED: JobState.DONE,
    RayJobStatus.FAILED: JobState.FAILED,
    RayJobStatus.STOPPED: JobState.CANCELLED,
}


def status_of(record: JobRecord, address: str) -> JobStatus:
    """Return where a job is.

    Its own `end.json` counts first, so that the end of a job is known without Ray. Without one, Ray is
    queried; if Ray does not respond, or is another one that does not know the job, the reason says that Ray
    is gone and when the job was last alive.
    """
    end = load_end(record.job_folder)
    found = _running_or_lost(record, address) if end is None else _ended(end)
    return found.model_copy(update={"requeues": num_requeues(record.log_folder)})


def _running_or_lost(record: JobRecord, address: str) -> JobStatus:
    heartbeat = load_heartbeat(record.job_folder)
    try:
        known = ask(address, lambda client: [job for job in client.list_jobs() if _is(job, record)])
    except UnreachableRayError:
        found = _without_ray(heartbeat, JobState.UNKNOWN, f"Ray itself does not respond at {address}")
        return found.model_copy(update={"is_unreachable": True})
    if not known:
        reason = f"the Ray at {address} does not know the job: it is another one, or was restarted"
        return _without_ray(heartbeat, JobState.FAILED, reason)
    return _as_ray_says(known[0], heartbeat)


def _is(job: JobDetails, record: JobRecord) -> bool:
    return bool(job.submission_id == record.handle)


def _ended(end: JobEnd) -> JobStatus:
    return JobStatus(state=end.state, reason=end.reason, exit_code=end.exit_code, nodes=end.nodes)


def _without_ray(heartbeat: Heartbeat | None, state: JobState, reason: str) -> JobStatus:
    if heartbeat is None:
        life = "the job has written no heartbeat"
    else:
        life = f"the job was last alive {heartbeat.age_seconds:.0f} s ago ({heartbeat.activity})"
    return JobStatus(
        state=state,
        reason=f"{reason}; {life}; once Ray runs, `megaponder jobs requeue` resumes from the last checkpoint",
        nodes=() if heartbeat is None else heartbeat.hosts,
    )


def _as_ray_says(job: JobDetails, heartbeat: Heartbeat | None) -> JobStatus:
    state = _STATES[job.status]
    if state == JobState.RUNNING and (heartbeat is None or not heartbeat.hosts):
        # The driver waits for capacity, or for other jobs.
        state = JobState.QUEUED
    if state == JobState.CANCELLED:
        reason = "stopped before it could write how it ended"
    elif state.is_final:
        reason = f"Ray runs, but the job's driver ended without a report: {job.message}"
    elif heartbeat is None:
        reason = job.message or ""
    elif heartbeat.age_seconds > _LATE_SECONDS:
        reason = f"no heartbeat for {heartbeat.age_seconds:.0f} s, before: {heartbeat.activity}"
    else:
        reason = heartbeat.activity
    return JobStatus(
        state=state,
        reason=reason,
        exit_code=job.driver_exit_code,
        nodes=() if heartbeat is None else heartbeat.hosts,
    )
