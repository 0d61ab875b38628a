"""Waiting for submitted jobs to end."""

import time
from collections.abc import Sequence

from cluster.job_record import JobRecord, JobState, JobStatus
from cluster.patience import DEFAULT_SECONDS, PatientStatus
from cluster.targets import JobTarget
from pipeline.shared.errors import ClusterError

# The exit code of a job whose target no longer knows it.
_UNKNOWN_CODE = 1


def wait_for(
    target: JobTarget,
    records: Sequence[JobRecord],
    *,
    start_limit_seconds: float | None,
    last_counts: bool,
    unreachable_limit_seconds: float = DEFAULT_SECONDS,
    poll_seconds: float = 2.0,
) -> int:
    """Wait until all jobs have ended; return an exit code.

    Args:
        target: where the jobs are.
        records: of the jobs.
        start_limit_seconds: within which one of them must have started; None: however long it takes.
        last_counts: each job resumes the one before, so the code of the last one is that of all.
        unreachable_limit_seconds: how long the target may not respond.
        poll_seconds: between two queries, which are work for the cluster's controller.

    Returns:
        the code of the last job, or of the first that did not end with 0.

    Raises:
        ClusterError: none has started in time, and they are cancelled; or the target does not respond.
    """
    patient = PatientStatus(target, limit_seconds=unreachable_limit_seconds)
    end = None if start_limit_seconds is None else time.monotonic() + start_limit_seconds
    while True:
        statuses = _statuses(patient, records)
        if statuses is None:
            time.sleep(poll_seconds)
            continue
        if all(status.state.is_final or status.state == JobState.UNKNOWN for status in statuses):
            codes = [_code(status) for status in statuses]
            return codes[-1] if last_counts else next((code for code in codes if code), 0)
        if not all(status.state == JobState.QUEUED and status.requeues == 0 for status in statuses):
            end = None
        if end is not None and time.monotonic() > end:
            for record in reversed(records):
                target.cancel(record)
            raise ClusterError(
                f"{records[0].job_id} must start within {start_limit_seconds:.0f} s (--start-limit), but "
                f"waits for: {statuses[0].reason or 'no reason given'}; it is cancelled"
            )
        time.sleep(poll_seconds)


def _statuses(patient: PatientStatus, records: Sequence[JobRecord]) -> list[JobStatus] | None:
    """Return the status of every job; None while the target does not respond."""
    statuses = []
    for record in records:
        status = patient.of(record)
        if status is None:
            return None
        statuses.append(status)
    return statuses


def _code(status: JobStatus) -> int:
    return _UNKNOWN_CODE if status.exit_code is None else status.exit_code
