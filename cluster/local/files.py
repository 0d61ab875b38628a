"""What only a local job keeps in its folder: its process, and what it is asked for."""

import socket
from enum import StrEnum
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.shared.errors import ClusterError
from pipeline.shared.files import write_atomically

SCRIPT_NAME = "job.sh"
SUPERVISOR_LOG = "supervisor.log"
_PROCESS_NAME = "process.json"
_REQUEST_NAME = "request"


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
