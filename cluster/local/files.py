"""What a local job keeps in its folder beside its record: its process, its end, and what it is asked for."""

import socket
from enum import StrEnum
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.errors import ClusterError
from data_prep.files import write_atomically

SCRIPT_NAME = "job.sh"
SUPERVISOR_LOG = "supervisor.log"
_PROCESS_NAME = "process.json"
_END_NAME = "end.json"
_REQUEST_NAME = "request"
_START_PREFIX = "start_"


class Request(StrEnum):
    """What a job that is told to stop is to do when its ranks have left."""

    CANCEL = "cancel"
    REQUEUE = "requeue"


class Supervisor(BaseModel):
    """The process that sees to a job.

    Attributes:
        host: the machine it runs on.
        pid: its number there.
        created: when it started, in seconds since 1970: numbers of processes are used again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    pid: int
    created: float

    @classmethod
    def of_process(cls, pid: int) -> "Supervisor":
        """Describe a process of this machine that has not been waited for."""
        return cls(host=socket.gethostname(), pid=pid, created=psutil.Process(pid).create_time())

    @property
    def is_here(self) -> bool:
        """Whether it is this machine's, so that something can be said of it."""
        return self.host == socket.gethostname()

    def process(self) -> psutil.Process | None:
        """Return the process while it runs."""
        try:
            process = psutil.Process(self.pid)
            is_it = process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if is_it else None


class JobEnd(BaseModel):
    """How a job ended.

    Attributes:
        exit_code: of the job.
        cancelled: it was told to end, and did before it had finished.
        reason: in words, where the code does not say it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    exit_code: int
    cancelled: bool = False
    reason: str = ""


def save_supervisor(folder: Path, supervisor: Supervisor) -> None:
    """Remember the process of a job."""
    write_atomically(folder / _PROCESS_NAME, supervisor.model_dump_json().encode())


def load_supervisor(folder: Path) -> Supervisor:
    """Return the process of a job.

    Raises:
        ClusterError: the job's folder does not say.
    """
    path = folder / _PROCESS_NAME
    try:
        return Supervisor.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ClusterError(
            f"{path} must name the process of the job, but cannot be read ({error}); submit the run again"
        ) from error


def save_end(folder: Path, end: JobEnd) -> None:
    """Remember how a job ended."""
    write_atomically(folder / _END_NAME, end.model_dump_json().encode())


def load_end(folder: Path) -> JobEnd | None:
    """Return how a job ended; None while it has not, or nobody was left to write it."""
    path = folder / _END_NAME
    return JobEnd.model_validate_json(path.read_bytes()) if path.exists() else None


def forget_end(folder: Path) -> None:
    """Make a job that has ended one that may start again."""
    (folder / _END_NAME).unlink(missing_ok=True)
    take_request(folder)


def leave_request(folder: Path, request: Request) -> None:
    """Ask a job for something; it looks when it is told to stop."""
    write_atomically(folder / _REQUEST_NAME, request.encode())


def take_request(folder: Path) -> Request | None:
    """Return what a job was asked for last, once."""
    path = folder / _REQUEST_NAME
    if not path.exists():
        return None
    request = Request(path.read_text())
    path.unlink()
    return request


def new_start_folder(logs: Path) -> Path:
    """Make the folder in which the ranks of the next start write."""
    folder = logs / f"{_START_PREFIX}{len(start_folders(logs))}"
    folder.mkdir(parents=True)
    return folder


def start_folders(logs: Path) -> list[Path]:
    """Return the folders of all starts, oldest first."""
    return sorted(
        logs.glob(f"{_START_PREFIX}*"), key=lambda folder: _number_after(_START_PREFIX, folder.name)
    )


def rank_logs(start: Path) -> tuple[Path, ...]:
    """Return what each rank of a start writes, the first rank's first."""
    return tuple(sorted(start.glob("rank_*.log"), key=lambda file: _number_after("rank_", file.stem)))


def _number_after(prefix: str, name: str) -> int:
    return int(name.removeprefix(prefix))
