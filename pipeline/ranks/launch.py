"""Start the ranks of a run on this machine, again if they fail, and see to it that none outlives the run.

Each rank leads a process group of its own and dies with the launcher (``PR_SET_PDEATHSIG``), however the
launcher ends. Ctrl-C reaches the launcher alone, which passes it on once and waits a bounded time before it
kills.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from pipeline.ranks.process import AGREED_CODES, code_of, die_with_parent, first_failed
from pipeline.ranks.signals import STOP_SIGNALS
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.ports import free_port

__all__ = ["run_ranks"]

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
# Codes that another start would end with as well.
_FINAL_CODES = (
    ExitCode.DONE,
    ExitCode.USAGE,
    ExitCode.NOT_SUPPORTED,
    ExitCode.FAILED_VALIDATION,
    ExitCode.DO_NOT_REQUEUE,
    ExitCode.INTERRUPTED,
)
_FIRST_BACK_OFF_SECONDS = 1.0
_LONGEST_BACK_OFF_SECONDS = 60.0


def run_ranks(
    arguments: Sequence[str],
    *,
    num_ranks: int,
    stop_timeout_seconds: float = 120.0,
    failure_timeout_seconds: float = 10.0,
    environment: Mapping[str, str] | None = None,
    max_restarts: int = 0,
    open_logs: Callable[[], Sequence[Path]] | None = None,
) -> int:
    """Run ``python <arguments>`` on local ranks with torchrun's variables; return the run's exit code.

    Must be called from the main thread, because it handles signals.

    Args:
        arguments: what follows the interpreter, e.g. ``["-m", "pipeline.cli", "train", ...]``.
        num_ranks: how many ranks to start.
        stop_timeout_seconds: how long ranks may take to save and leave after SIGINT, SIGTERM or SIGUSR1.
        failure_timeout_seconds: how long the others may take to leave after a rank has failed.
        environment: variables added to this process's own.
        max_restarts: how often all ranks are started again after a failure that a start may cure. The wait
            before that doubles from one second to a minute.
        open_logs: called before each start; returns a file for each rank, in existing folders, to which it
            writes all it says. None leaves the ranks this process's own output.

    Returns:
        0 if all ranks left with 0, else the code of the first rank that did not; 128 + N where signal N ended
        it. Told to stop before the ranks listened, REQUEUE, because nothing was lost.
    """
    launcher = _Launcher(stop_timeout_seconds, failure_timeout_seconds)
    previous = {number: signal.signal(number, launcher.forward) for number in STOP_SIGNALS}
    try:
        for restart in range(max_restarts + 1):
            logs = None if open_logs is None else open_logs()
            code = launcher.run(arguments, num_ranks, environment or {}, logs)
            is_final = launcher.was_told_to_stop or code in _FINAL_CODES or restart == max_restarts
            if is_final or not launcher.waits_before(restart + 1, max_restarts, code):
                break
        return code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Launcher:
    def __init__(self, stop_timeout_seconds: float, failure_timeout_seconds: float) -> None:
        self._stop_timeout_seconds = stop_timeout_seconds
        self._failure_timeout_seconds = failure_timeout_seconds
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._deadline = float("inf")
        self._told: signal.Signals | None = None

    @property
    def was_told_to_stop(self) -> bool:
        """Whether a signal has come."""
        return self._told is not None

    def run(
        self,
        arguments: Sequence[str],
        num_ranks: int,
        environment: Mapping[str, str],
        logs: Sequence[Path] | None,
    ) -> int:
        """Start all ranks and wait for them; none is left when it returns."""
        self._ranks = []
        self._deadline = float("inf")
        try:
            self._start(arguments, num_ranks, environment, logs)
            code = self._wait()
        finally:
            self._kill_all()
        is_unheard = self._told not in (None, signal.SIGINT) and code == 128 + int(self._told or 0)
        return ExitCode.REQUEUE if is_unheard else code

    def waits_before(self, restart: int, max_restarts: int, code: int) -> bool:
        """Let some time pass before a restart; False where a signal comes meanwhile."""
        seconds = min(_FIRST_BACK_OFF_SECONDS * 2 ** (restart - 1), _LONGEST_BACK_OFF_SECONDS)
        logger.warning(
            "the run ended with exit code %d; restart %d of %d in %.0f s",
            code,
            restart,
            max_restarts,
            seconds,
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.was_told_to_stop:
            time.sleep(_POLL_SECONDS)
        return not self.was_told_to_stop

    def _start(
        self,
        arguments: Sequence[str],
        num_ranks: int,
        environment: Mapping[str, str],
        logs: Sequence[Path] | None,
    ) -> None:
        port = free_port()
        for rank in range(num_ranks):
            if self.was_told_to_stop:
                return
            with _output(None if logs is None else logs[rank]) as output:
                self._ranks.append(
                    subprocess.Popen(
                        [sys.executable, *arguments],
                        env={**os.environ, **environment, **_rank_variables(rank, num_ranks, port)},
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        process_group=0,
                        preexec_fn=die_with_parent(os.getpid()),
                    )
                )

    def _wait(self) -> int:
        """Wait until all ranks have left or the deadline has passed; return the run's exit code."""
        failed: int | None = None
        while True:
            codes = [code_of(rank) for rank in self._ranks]
            if failed is None:
                failed = first_failed(codes)
                if failed is not None:
                    self._stop_others(failed, codes)
            if None not in codes or time.monotonic() > self._deadline:
                break
            time.sleep(_POLL_SECONDS)
        staying = [rank for rank, code in enumerate(codes) if code is None]
        if staying:
            logger.error("ranks %s did not leave in time and are killed", staying)
        code = codes[failed] if failed is not None else None
        if code is not None:
            return code
        return 128 + signal.SIGKILL if staying else 0

    def forward(self, number: int, _frame: FrameType | None) -> None:
        """Pass the first signal on to every rank; later ones change nothing, the deadline is set."""
        if self.was_told_to_stop:
            return
        self._told = signal.Signals(number)
        self._deadline = time.monotonic() + self._stop_timeout_seconds
        for rank in self._ranks:
            os.kill(rank.pid, number)

    def _kill_all(self) -> None:
        """Kill the process group of every rank, helpers included, and reap the rank."""
        # A signal that comes from here on finds no rank: their numbers may soon belong to other processes.
        ranks, self._ranks = self._ranks, []
        for rank in ranks:
            # A rank that has left is not reaped yet, so its number cannot belong to another process.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()

    def _stop_others(self, failed: int, codes: Sequence[int | None]) -> None:
        is_agreed = codes[failed] in AGREED_CODES
        if is_agreed and self.was_told_to_stop:
            return
        self._deadline = min(self._deadline, time.monotonic() + self._failure_timeout_seconds)
        if not is_agreed and not self.was_told_to_stop:
            logger.error(
                "rank %d of %d failed with exit code %s; stopping the others",
                failed,
                len(codes),
                codes[failed],
            )


@contextlib.contextmanager
def _output(log: Path | None) -> Iterator[int | None]:
    """Open where a rank writes; None is where this process writes."""
    if log is None:
        yield None
        return
    with log.open("ab") as file:
        yield file.fileno()


def _rank_variables(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    # Ranks share the cores; torch would give all of them to each.
    threads = max((os.cpu_count() or 1) // num_ranks, 1)
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
