"""What only a local job keeps in its folder: its process, and requests to it."""

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
    """What a job does after a stop signal, when its ranks have left."""

    CANCEL = "cancel"
    REQUEUE = "requeue"


class Supervisor(BaseModel):
    """The process that runs a job.

    Attributes:
        host: the machine it runs on.
        pid: of the process on that machine.
        created: when it started, in seconds since 1970: process ids are reused.
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
        """Whether it runs on this machine, so that its state is known."""
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
    """Write down the process of a job."""
    write_atomically(folder / _PROCESS_NAME, supervisor.model_dump_json().encode())


def load_supervisor(folder: Path) -> Supervisor:
    """Return the process of a job.

    Raises:
        ClusterError: the file cannot be read.
    """
    path = folder / _PROCESS_NAME
    try:
        return Supervisor.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ClusterError(
            f"{path} must identify the process of the job, but cannot be read ({error}); submit the run again"
        ) from error


def leave_request(folder: Path, request: Request) -> None:
    """Leave a request for a job, which reads it after a stop signal."""
    write_atomically(folder / _REQUEST_NAME, request.encode())


def take_request(folder: Path) -> Request | None:
    """Return the last request and remove it."""
    path = folder / _REQUEST_NAME
    if not path.exists():
        return None
    request = Request(path.read_text())
    path.unlink()
    return request
