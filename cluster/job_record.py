"""The record of a submitted job, in its own folder inside the run's: `jobs/<stamp>/job.json`."""

import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.job_spec import LOGS_FOLDER
from pipeline.config.submit_section import Target
from pipeline.shared.errors import ClusterError
from pipeline.shared.files import write_atomically
from pipeline.shared.secrets import mask_text

JOBS_FOLDER = "jobs"
RECORD_NAME = "job.json"
# Of a run: hidden folders, checkpoints, and curves.
_WITHOUT_JOBS = (".", "checkpoints", "iter_", "tensorboard")


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
        is_unreachable: the target does not respond; what is reported is what the job's folder says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: JobState
    reason: str = ""
    exit_code: int | None = None
    requeues: int = 0
    nodes: tuple[str, ...] = ()
    is_unreachable: bool = False


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
    masked = record.model_copy(update={"command": tuple(mask_text(word) for word in record.command)})
    content = masked.model_dump_json(indent=2) + "\n"
    write_atomically(record.job_folder / RECORD_NAME, content.encode())


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRecords:
    """The jobs below a folder.

    Attributes:
        records: oldest first.
        unreadable: a line for each record that cannot be read, with its file.
    """

    records: tuple[JobRecord, ...]
    unreadable: tuple[str, ...]


def scan_records(runs: Path) -> FoundRecords:
    """Find the jobs of a run, or of all runs in a folder and the folders below it."""
    records: list[JobRecord] = []
    unreadable: list[str] = []
    for path in _record_files(runs):
        try:
            records.append(JobRecord.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            what = str(error).partition("\n")[0] if isinstance(error, OSError) else "it is no record"
            unreadable.append(
                f"{path} must be the record of a job, but cannot be read ({what}); delete it to "
                "forget the job"
            )
    return FoundRecords(
        records=tuple(sorted(records, key=lambda record: record.submitted_at)), unreadable=tuple(unreadable)
    )


def records_below(runs: Path) -> tuple[JobRecord, ...]:
    """Return the jobs of a run, or of all runs in a folder and below, oldest first, that can be read."""
    return scan_records(runs).records


def find_record(runs: Path, job: str) -> JobRecord:
    """Return a job by its id, or a run's newest; see `find_records`."""
    return find_records(runs, job)[-1]


def find_records(runs: Path, job: str) -> Sequence[JobRecord]:
    """Return a job by its id (`slurm:1234`, or `1234` where only one target has it) or all of a name.

    Args:
        runs: a folder of runs, nested in further folders or not, or one run.
        job: an id, the folder or name of a run, or the name of a workflow step's jobs, such as `run-train`.

    Raises:
        ClusterError: there is no such job, or several.
    """
    of_run: Sequence[JobRecord]
    unreadable: Sequence[str] = ()
    if Path(job).is_dir():
        of_run = records_below(Path(job))
    else:
        found = scan_records(runs)
        records, unreadable = found.records, found.unreadable
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
            + "".join(f"; {line}" for line in unreadable)
        )
    return of_run


def _record_files(runs: Path) -> Iterator[Path]:
    """Yield the records at any depth; links are followed, each folder is visited once."""
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, files in os.walk(runs, followlinks=True):
        status = Path(folder).stat()
        is_record = RECORD_NAME in files and Path(folder).parent.name == JOBS_FOLDER
        if is_record:
            yield Path(folder) / RECORD_NAME
        if is_record or (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
        seen.add((status.st_dev, status.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(_WITHOUT_JOBS))
