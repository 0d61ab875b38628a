"""What only a local job keeps in its folder: its process, and requests to it."""

import socket
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.shared.errors import ClusterError
from pipeline.shared.files import write_atomically
from pipeline.shared.process_identity import ProcessIdentity, boot_id, pid_namespace, process_state

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
        boot, pid_namespace, start_ticks: see `ProcessIdentity`; None in files of earlier versions.
        created: of earlier versions: when it started, in seconds since 1970.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str
    pid: int
    boot: str | None = None
    pid_namespace: str | None = None
    start_ticks: int | None = None
    created: float | None = None

    @classmethod
    def of_process(cls, pid: int) -> "Supervisor":
        """Describe a process of this machine that has not been waited for."""
        return cls(**asdict(ProcessIdentity.of(pid)))

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, or did before that was restarted, so that its state is known."""
        if self.boot == boot_id():
            return self.pid_namespace == pid_namespace()
        return self.host == socket.gethostname()

    def process(self) -> psutil.Process | None:
        """Return the process while it runs."""
        try:
            process = psutil.Process(self.pid)
            return process if self._is_it(process) else None
        except psutil.NoSuchProcess:
            return None

    def _is_it(self, process: psutil.Process) -> bool:
        if self.start_ticks is None:
            return process.create_time() == self.created and process.status() != psutil.STATUS_ZOMBIE
        state = process_state(self.pid)
        is_it = self.boot == boot_id() and state is not None and state.start_ticks == self.start_ticks
        return is_it and state is not None and not state.is_dead


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
