"""A running Ray cluster as a target of jobs."""

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cluster.job_files import forget_end, load_end, newest_rank_logs
from cluster.job_record import JOBS_FOLDER, JobRecord, JobStatus, save_record
from cluster.job_spec import JobSpec
from cluster.on_ray.heartbeat import HEARTBEAT_NAME
from cluster.on_ray.job_file import JOB_FILE_NAME, load_job, render_job, submission_of
from cluster.spec_checks import check_spec
from pipeline.shared.errors import ClusterError
from pipeline.shared.files import write_private

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
# What Ray needs beyond the time it gives a job to stop.
_STOP_MARGIN_SECONDS = 30.0


class RayTarget:
    """A Ray cluster behind its Jobs API.

    Args:
        address: of the Jobs API, which is the dashboard's; None: RAY_API_SERVER_ADDRESS.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address

    def render(self, spec: JobSpec) -> str:
        """Return the request to the Jobs API and the file that the driver reads, as one JSON."""
        check_spec(spec)
        jobs = [
            {"submission": submission_of(job), JOB_FILE_NAME: json.loads(render_job(job))}
            for job in _each(spec)
        ]
        return json.dumps(jobs[0] if len(jobs) == 1 else jobs, indent=2) + "\n"

    def submit(self, spec: JobSpec) -> tuple[JobRecord, ...]:
        """Start a driver on the cluster, or one for every run of a hyper-parameter sweep."""
        check_spec(spec)
        _check_supported(spec)
        return tuple(self._submit(job) for job in _each(spec))

    def status(self, record: JobRecord) -> JobStatus:
        """Return how the job ended, from its folder; else query Ray and the job's heartbeats."""
        from cluster.on_ray.outcome import status_of

        return status_of(record, self._url(record))

    def logs(self, record: JobRecord) -> tuple[Path, ...]:
        """Return the rank logs of the last attempt."""
        return newest_rank_logs(record.log_folder)

    def cancel(self, record: JobRecord) -> None:
        """Let Ray send SIGTERM to the driver, which lets the ranks save; Ray kills it after the lead time."""
        from cluster.on_ray.jobs_api import ask

        if load_end(record.job_folder) is None:
            ask(self._url(record), lambda client: client.stop_job(record.handle))

    def requeue(self, record: JobRecord) -> JobRecord:
        """Stop the job if it runs, wait until it has saved, and submit it again under another id."""
        job = load_job(record.job_folder / JOB_FILE_NAME)
        if not self.status(record).state.is_final:
            self.cancel(record)
            self._wait_for_end(record, job.requeue.signal_lead_seconds + _STOP_MARGIN_SECONDS)
        forget_end(record.job_folder)
        (record.job_folder / HEARTBEAT_NAME).unlink(missing_ok=True)
        _, _, start = record.handle.partition("-again")
        return self._submit(job, start=int(start or 0) + 1)

    def _submit(self, job: JobSpec, *, start: int = 0) -> JobRecord:
        from cluster.on_ray.jobs_api import address_of, ask

        address = address_of(self._address)
        job.log_folder.mkdir(parents=True, exist_ok=True)
        write_private(job.job_folder / JOB_FILE_NAME, render_job(job))
        request = submission_of(job, start)
        handle = ask(address, lambda client: client.submit_job(**request))
        record = JobRecord(
            target="ray",
            handle=handle,
            address=address,
            name=job.name,
            run_folder=job.run_folder,
            job_folder=job.job_folder,
            submitted_at=datetime.now(UTC),
            command=job.command,
        )
        save_record(record)
        return record

    def _url(self, record: JobRecord) -> str:
        from cluster.on_ray.jobs_api import address_of

        return address_of(self._address or record.address)

    def _wait_for_end(self, record: JobRecord, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.status(record).state.is_final:
            if time.monotonic() > end:
                raise ClusterError(
                    f"{record.job_id} must end within {seconds:.0f} s of the stop signal, but still runs; "
                    "see `megaponder jobs status`"
                )
            time.sleep(_POLL_SECONDS)


def _each(spec: JobSpec) -> Iterator[JobSpec]:
    """Split a hyper-parameter sweep into jobs: Ray has no arrays."""
    if not spec.sweep:
        yield spec
    for index, member in enumerate(spec.sweep):
        yield replace(
            spec,
            name=member.name,
            command=(*spec.command, *member.overrides),
            run_folder=member.run_folder,
            job_folder=member.run_folder / JOBS_FOLDER / f"{spec.job_folder.name}-{index}",
            sweep=(),
        )


def _check_supported(spec: JobSpec) -> None:
    if spec.container is not None:
        raise ClusterError(
            f"submit.container must be unset for ray, but is {spec.container.image}: ranks run in the image "
            "of the cluster's own nodes; start the cluster with it"
        )
    unused = {
        "submit.partition": spec.queue.partition,
        "submit.account": spec.queue.account,
        "submit.qos": spec.queue.qos,
        "submit.constraint": spec.queue.constraint,
        "submit.options": spec.queue.options,
        "submit.wall_time": spec.resources.wall_time,
        "submit.chain": spec.chain > 1,
    }
    names = [name for name, value in unused.items() if value]
    if names:
        logger.warning("Ray has no queues and no wall time: %s have no effect there", ", ".join(names))
