"""The processes of one machine's ranks: how they start, how they are stopped, and which one was the cause.

Used by the launcher of local runs and, on Ray, by the worker of every machine.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.shared.exit_codes import AGREED_CODES, ExitCode
from pipeline.shared.python_start import python_variables

__all__ = ["RankProcesses", "die_with_parent", "first_failed", "rank_variables"]

_PR_SET_PDEATHSIG = 1
# With them torch takes the store of the job for one that torchrun has started.
_OF_ANOTHER_LAUNCHER = "TORCHELASTIC_"


class RankProcesses:
    """Ranks as processes of this machine.

    Each leads a process group of its own and is killed when the thread that started it ends: one thread that
    outlives the ranks must start and poll them. Only signal handlers of that thread may call `stop` at any
    time.

    Args:
        stop_timeout_seconds: how long ranks may take to save and leave after a stop signal; a function is
            asked when it arrives.
        failure_timeout_seconds: how long the others may take to leave after a rank has failed.
    """

    def __init__(
        self,
        *,
        stop_timeout_seconds: float | Callable[[], float] = 0.0,
        failure_timeout_seconds: float = 0.0,
    ) -> None:
        self._stop_timeout_seconds = stop_timeout_seconds
        self._failure_timeout_seconds = failure_timeout_seconds
        self._processes: list[subprocess.Popen[bytes]] = []
        self._deadline = float("inf")
        self._is_stopping = False
        self._has_failure = False
        self._killed: frozenset[int] = frozenset()
        self._not_the_cause: frozenset[int] = frozenset()

    def start(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        *,
        log: Path | None = None,
        working_directory: Path | None = None,
    ) -> None:
        """Start one more rank.

        Args:
            command: what it runs.
            variables: added to this process's environment.
            log: a file in an existing folder, to which it writes all its output; None: this process's output.
            working_directory: where it runs; None: here.
        """
        with _output(log) as output:
            self._processes.append(
                subprocess.Popen(
                    command,
                    env=_environment(variables),
                    cwd=working_directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    process_group=0,
                    preexec_fn=die_with_parent(os.getpid()),
                )
            )

    @property
    def codes(self) -> tuple[int | None, ...]:
        """Exit code of each rank as a shell reports it, None while it runs.

        A rank that only waited for one that had failed, and was killed for it, counts as 0: it is no cause.
        """
        codes = (_code_of(process) for process in self._processes)
        return tuple(
            0 if code is not None and index in self._not_the_cause else code
            for index, code in enumerate(codes)
        )

    def stop(self, number: signal.Signals) -> None:
        """Pass a stop signal on to every rank and set the deadline; only the first call has an effect."""
        if self._is_stopping:
            return
        self._is_stopping = True
        for process in self._processes:
            os.kill(process.pid, number)
        limit = self._stop_timeout_seconds
        self._deadline = min(self._deadline, time.monotonic() + (limit() if callable(limit) else limit))

    def note_failure(self, code: int) -> None:
        """Bound the time that the ranks may still take, because one has failed, here or on another machine.

        Ranks that save after a stop signal leave one by one with a code they agree on, so that the first one
        to leave must not hurry the others. One that crashes meanwhile will keep them waiting in vain.

        Args:
            code: exit code of the rank that failed.
        """
        if self._has_failure:
            return
        self._has_failure = True
        if not (self._is_stopping and code in AGREED_CODES):
            self._deadline = min(self._deadline, time.monotonic() + self._failure_timeout_seconds)

    def kill_overdue(self) -> list[int]:
        """Kill the ranks that still run after the deadline; return their places among those started."""
        if time.monotonic() <= self._deadline:
            return []
        running = (index for index, process in enumerate(self._processes) if _code_of(process) is None)
        overdue = [index for index in running if index not in self._killed]
        self._killed |= frozenset(overdue)
        if self._has_failure:
            self._not_the_cause |= frozenset(overdue)
        for index in overdue:
            os.kill(self._processes[index].pid, signal.SIGKILL)
        return overdue

    def kill(self) -> None:
        """Kill the process group of every rank, helpers included, and reap the rank."""
        # A signal that arrives from here on finds no rank: their numbers may soon belong to other processes.
        processes, self._processes = self._processes, []
        for process in processes:
            # A rank that has left is not reaped yet, so its number cannot belong to another process.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def rank_variables(
    *, rank: int, local_rank: int, world_size: int, local_world_size: int, address: str, port: int
) -> dict[str, str]:
    """Return the variables that torchrun sets for a rank.

    Args:
        address, port: where the ranks meet, on the machine of the first one.
    """
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def die_with_parent(parent: int) -> Callable[[], None]:
    """Return what a child calls between fork and exec to be killed when its parent's thread ends.

    Args:
        parent: process id of the parent.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def ask_kernel() -> None:
        """Runs between fork and exec; takes no lock that a thread of the launcher could hold."""
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0 or os.getppid() != parent:
            os._exit(ExitCode.CRASH)

    return ask_kernel


def first_failed(codes: Sequence[int | None]) -> int | None:
    """Return the rank that was the cause, of those that have failed.

    One rank's death makes the others fail: of several, one ended by a signal was the cause, else one whose
    code the others do not leave with by agreement.
    """
    failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
    return max(
        failed, key=lambda rank: ((codes[rank] or 0) > 128, codes[rank] not in AGREED_CODES), default=None
    )


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a rank, without what another launcher has left in that of this process."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(_OF_ANOTHER_LAUNCHER)
    }
    environment |= variables
    return environment | python_variables(environment)


def _code_of(process: subprocess.Popen[bytes]) -> int | None:
    """Return the exit code of a rank as a shell reports it, or None while it runs; do not reap it."""
    left = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if left is None:
        return None
    return left.si_status if left.si_code == os.CLD_EXITED else 128 + left.si_status


@contextlib.contextmanager
def _output(log: Path | None) -> Iterator[int | None]:
    """Open where a rank writes; None is where this process writes."""
    if log is None:
        yield None
        return
    with log.open("ab") as file:
        yield file.fileno()
