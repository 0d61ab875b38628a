"""The record of a submitted job, in its own folder inside the run's: `jobs/<stamp>/job.json`."""

import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.job_spec import LOGS_FOLDER
from pipeline.config.submit_section import Target
from pipeline.shared.errors import ClusterError
from pipeline.shared.files import write_atomically

JOBS_FOLDER = "jobs"
RECORD_NAME = "job.json"


class JobState(StrEnum):
    """The state of a job; the same words for every target."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    """The target no longer knows the job, or cannot be reached."""

    @property
    def is_final(self) -> bool:
        """Whether the job will not change by itself."""
        return self in (JobState.DONE, JobState.FAILED, JobState.CANCELLED)


class JobStatus(BaseModel):
    """What a target reports of a job.

    Attributes:
        state: of the job.
        reason: the target's own words, or why the job ended.
        exit_code: of the job; None while there is none.
        requeues: how often it has restarted.
        nodes: where it runs or last ran.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: JobState
    reason: str = ""
    exit_code: int | None = None
    requeues: int = 0
    nodes: tuple[str, ...] = ()


class JobRecord(BaseModel):
    """A job as it was submitted.

    Attributes:
        target: where it was submitted.
        handle: the target's name for it: a SLURM job id, a Ray submission id, a process id.
        address: of the Ray cluster; None for other targets.
        name: of the run, with that of the workflow step.
        run_folder, job_folder: see `cluster.job_spec.JobSpec`.
        submitted_at: in UTC.
        command: what every rank runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target
    handle: str
    address: str | None = None
    name: str
    run_folder: Path
    job_folder: Path
    submitted_at: datetime
    command: tuple[str, ...]

    @property
    def job_id(self) -> str:
        """The user's name for the job, such as `slurm:1234`."""
        return f"{self.target}:{self.handle}"

    @property
    def log_folder(self) -> Path:
        """See `cluster.job_files`."""
        return self.job_folder / LOGS_FOLDER


def new_job_folder(run_folder: Path, name: str) -> Path:
    """Return a folder for a job that is about to be submitted; such folders sort by time."""
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return run_folder / JOBS_FOLDER / f"{stamp}-{name}-{secrets.token_hex(2)}"


def save_record(record: JobRecord) -> None:
    """Write a job's record into its folder atomically."""
    content = record.model_dump_json(indent=2) + "\n"
    write_atomically(record.job_folder / RECORD_NAME, content.encode())


def records_below(runs: Path) -> list[JobRecord]:
    """Return the jobs of a run, or of all runs in a folder, oldest first.

    Raises:
        ClusterError: a record cannot be read.
    """
    return sorted((_load(path) for path in _record_files(runs)), key=lambda record: record.submitted_at)


def find_record(runs: Path, job: str) -> JobRecord:
    """Return a job by its id, or a run's newest; see `find_records`."""
    return find_records(runs, job)[-1]


def find_records(runs: Path, job: str) -> list[JobRecord]:
    """Return a job by its id (`slurm:1234`, or `1234` where only one target has it) or all of a name.

    Args:
        runs: a folder of runs, or one run.
        job: an id, the folder or name of a run, or the name of a workflow step's jobs, such as `run-train`.

    Raises:
        ClusterError: there is no such job, or several.
    """
    if Path(job).is_dir():
        of_run = records_below(Path(job))
    else:
        records = records_below(runs)
        exact = [record for record in records if job in (record.job_id, record.handle)]
        if len({record.job_id for record in exact}) > 1:
            raise ClusterError(
                f"a job must be named by one id, but {job} is {' and '.join(r.job_id for r in exact)}; "
                "write the whole id"
            )
        # A link of a chain has its number behind the name.
        of_run = exact or [
            record for record in records if job in (record.name.partition(" (")[0], record.run_folder.name)
        ]
    if not of_run:
        raise ClusterError(
            f"a job must be an id or a run below {runs}, but none is called {job}; "
            "see `megaponder jobs list`, and give --runs if the runs are elsewhere"
        )
    return of_run


def _record_files(runs: Path) -> Iterator[Path]:
    for pattern in (f"{JOBS_FOLDER}/*/{RECORD_NAME}", f"*/{JOBS_FOLDER}/*/{RECORD_NAME}"):
        yield from runs.glob(pattern)


def _load(path: Path) -> JobRecord:
    try:
        return JobRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ClusterError(
            f"{path} must be the record of a job, but cannot be read ({error}); delete it to forget the job"
        ) from error
