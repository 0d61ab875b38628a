"""What the driver of a job leaves in the job's folder: signs of life, and how it ended.

The folder is shared, so these files tell a dead training from a dead Ray: where Ray does not answer any more
they say how long the job was alive and what it did then.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from data_prep.files import write_atomically

HEARTBEAT_NAME = "heartbeat.json"
OUTCOME_NAME = "outcome.json"
_ATTEMPT_PREFIX = "attempt_"


class Heartbeat(BaseModel):
    """A job that lives.

    Attributes:
        time: in UTC.
        activity: in words.
        restarts: how often all ranks have started again.
        hosts: of the ranks, in their order.
        alive_ranks: how many run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: datetime
    activity: str
    restarts: int = 0
    hosts: tuple[str, ...] = ()
    alive_ranks: int = 0

    @property
    def age_seconds(self) -> float:
        """How long ago it was written."""
        return (datetime.now(UTC) - self.time).total_seconds()


class Outcome(BaseModel):
    """A job that has ended.

    Attributes:
        exit_code: of the job, see `pipeline.exit_codes`.
        reason: in words; empty where it is done.
        restarts: how often all ranks have started again.
        hosts: of its last ranks.
        is_cancelled: it was told to end.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    exit_code: int
    reason: str = ""
    restarts: int = 0
    hosts: tuple[str, ...] = ()
    is_cancelled: bool = False


Sign = TypeVar("Sign", bound=BaseModel)


def write_sign(sign: BaseModel, path: Path) -> None:
    """Write a sign, whole or not at all."""
    write_atomically(path, (sign.model_dump_json(indent=2) + "\n").encode())


def read_sign(kind: type[Sign], path: Path) -> Sign | None:
    """Return a sign, or None where there is none that can be read."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def next_attempt(log_folder: Path) -> Path:
    """Make the folder for the logs of the next start of a job's ranks."""
    folder = log_folder / f"{_ATTEMPT_PREFIX}{len(_attempts(log_folder)):03d}"
    folder.mkdir(parents=True)
    return folder


def newest_rank_logs(log_folder: Path) -> tuple[Path, ...]:
    """Return the files of the last start, the first rank's first."""
    attempts = _attempts(log_folder)
    return tuple(sorted(attempts[-1].glob("rank_*.log"))) if attempts else ()


def rank_log(attempt_folder: Path, rank: int) -> Path:
    """Name the file that a rank writes to."""
    return attempt_folder / f"rank_{rank:05d}.log"


def _attempts(log_folder: Path) -> Sequence[Path]:
    return sorted(log_folder.glob(f"{_ATTEMPT_PREFIX}*"))
