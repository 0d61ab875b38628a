"""What every job keeps in its folder, on every target: the logs of each attempt, and how it ended.

The layout::

    logs/attempt-001/rank-00000.log    output of a rank; a folder for each start of all ranks
    logs/attempt-001/final_error       what a rank leaves that fails alone, see `pipeline.ranks.final_error`
    end.json                           `JobEnd`, written once, when the job has ended

The script of a SLURM job writes the same from a shell, see `cluster/slurm/job.sbatch.j2`.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.job_record import JobState
from pipeline.shared.errors import ClusterError
from pipeline.shared.files import write_atomically

END_NAME = "end.json"
_ATTEMPT_PREFIX = "attempt-"
_RANK_PREFIX = "rank-"


class JobEnd(BaseModel):
    """How a job ended.

    Attributes:
        exit_code: of the job, see `pipeline.shared.exit_codes`.
        reason: in words, where the code alone does not explain it.
        cancelled: it was cancelled before it had finished.
        nodes: of its last ranks, where the target does not report them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    exit_code: int
    reason: str = ""
    cancelled: bool = False
    nodes: tuple[str, ...] = ()

    @property
    def state(self) -> JobState:
        """The final state; a job that had finished before the cancellation reached it is done."""
        if self.exit_code == 0:
            return JobState.DONE
        return JobState.CANCELLED if self.cancelled else JobState.FAILED


def save_end(job_folder: Path, end: JobEnd) -> None:
    """Write atomically how a job ended."""
    write_atomically(job_folder / END_NAME, end.model_dump_json().encode())


def load_end(job_folder: Path) -> JobEnd | None:
    """Return how a job ended; None while it has not, or if no process was left to write it.

    Raises:
        ClusterError: the file cannot be read.
    """
    path = job_folder / END_NAME
    try:
        return JobEnd.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ClusterError(
            f"{path} must say how the job ended, but cannot be read ({error}); delete it, and "
            "`megaponder jobs requeue` resumes from the newest checkpoint"
        ) from error


def forget_end(job_folder: Path) -> None:
    """Let a job that has ended start again."""
    (job_folder / END_NAME).unlink(missing_ok=True)


def next_attempt(log_folder: Path) -> Path:
    """Create the folder for the logs of the next attempt."""
    folder = log_folder / f"{_ATTEMPT_PREFIX}{len(_attempts(log_folder)) + 1:03d}"
    folder.mkdir(parents=True)
    return folder


def rank_log(attempt: Path, rank: int) -> Path:
    """Return the file of an attempt that a rank writes to."""
    return attempt / f"{_RANK_PREFIX}{rank:05d}.log"


def newest_rank_logs(log_folder: Path) -> tuple[Path, ...]:
    """Return the files of the last attempt in the order of ranks; none before the first attempt."""
    attempts = _attempts(log_folder)
    return tuple(sorted(attempts[-1].glob(f"{_RANK_PREFIX}*.log"), key=_number)) if attempts else ()


def num_attempts(log_folder: Path) -> int:
    """Return how often the ranks have started."""
    return len(_attempts(log_folder))


def num_requeues(log_folder: Path) -> int:
    """Return how often the ranks have started again."""
    return max(num_attempts(log_folder) - 1, 0)


def _attempts(log_folder: Path) -> list[Path]:
    return sorted(log_folder.glob(f"{_ATTEMPT_PREFIX}*"), key=_number)


def _number(path: Path) -> int:
    """Return the number at the end of a name; it may have more digits than it is padded to."""
    return int(path.stem.rpartition("-")[2])
