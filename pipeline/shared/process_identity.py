"""The identity of a process that no clock changes: its start in ticks since boot, and the id of the boot.

Process ids are reused, and wall-clock time is set by time servers and by hand.
"""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProcessIdentity", "ProcessState", "boot_id", "pid_namespace", "process_state"]

_PROC = Path("/proc")
# Of the kernel: PF_EXITING, the process has begun to leave and gives its memory back.
_EXITING_FLAG = 0x4
_DEAD_STATES = ("Z", "X", "x")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessState:
    """What the kernel reports of a process.

    Attributes:
        start_ticks: its start, in clock ticks since boot.
        is_dead: it has ended and waits for its parent.
        is_leaving: it has been ended, but still gives back what it holds.
    """

    start_ticks: int
    is_dead: bool
    is_leaving: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process of one machine, never another one with its number.

    Attributes:
        host: name of the machine, for people.
        boot: id of the machine's boot; different on every machine.
        pid_namespace: in which the number is valid; containers have their own.
        pid: number of the process.
        start_ticks: its start, in clock ticks since boot.
    """

    host: str
    boot: str
    pid_namespace: str
    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity":
        """Describe a process of this machine that has not been waited for.

        Raises:
            ProcessLookupError: there is no such process.
        """
        state = process_state(pid)
        if state is None:
            raise ProcessLookupError(f"process {pid} must exist, but does not")
        return cls(
            host=socket.gethostname(),
            boot=boot_id(),
            pid_namespace=pid_namespace(),
            pid=pid,
            start_ticks=state.start_ticks,
        )

    @classmethod
    def of_this_process(cls) -> "ProcessIdentity":
        """Describe this process."""
        return cls.of(os.getpid())

    @property
    def is_same_boot(self) -> bool:
        """Whether it runs under the kernel of this process, in a container or not."""
        return self.boot == boot_id()

    @property
    def is_visible(self) -> bool:
        """Whether its number means the same process here, so that `state` knows it."""
        return self.is_same_boot and self.pid_namespace == pid_namespace()

    @property
    def state(self) -> ProcessState | None:
        """What the kernel reports of a visible process; None if it has ended."""
        found = process_state(self.pid)
        if found is None or found.start_ticks != self.start_ticks or found.is_dead:
            return None
        return found


def process_state(pid: int) -> ProcessState | None:
    """Return what the kernel reports of the process with a number; None if there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name may contain blanks and parentheses. See proc(5): 3 is state, 9 flags, 22 start.
    fields = text.rpartition(")")[2].split()
    return ProcessState(
        start_ticks=int(fields[19]),
        is_dead=fields[0] in _DEAD_STATES,
        is_leaving=bool(int(fields[6]) & _EXITING_FLAG),
    )


def boot_id() -> str:
    """Return the id of this machine's boot; its name where the kernel has none."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


def pid_namespace() -> str:
    """Return the namespace in which this process's number is valid."""
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""
