"""Start the ranks of a run on this machine, restart them if they fail, and leave none behind.

Ctrl-C reaches the launcher alone, because ranks lead process groups of their own: it passes the signal on
once and waits a bounded time before it kills. A second one kills at once.
"""

import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from pipeline.ranks.environment import threads_given
from pipeline.ranks.final_error import FINAL_ERROR_NAME, FINAL_ERROR_VARIABLE, read_final_error
from pipeline.ranks.process import RankProcesses, first_failed, rank_variables
from pipeline.ranks.signals import STOP_SIGNALS
from pipeline.shared.cpus import usable_cpus
from pipeline.shared.exit_codes import AGREED_CODES, FINAL_CODES, ExitCode
from pipeline.shared.ports import free_port

__all__ = ["run_ranks"]

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_FIRST_BACK_OFF_SECONDS = 1.0
_LONGEST_BACK_OFF_SECONDS = 60.0


def run_ranks(
    arguments: Sequence[str],
    *,
    num_ranks: int,
    stop_timeout_seconds: float | Callable[[], float] = 120.0,
    failure_timeout_seconds: float = 10.0,
    environment: Mapping[str, str] | None = None,
    max_restarts: int = 0,
    open_logs: Callable[[], Sequence[Path]] | None = None,
) -> int:
    """Run ``python <arguments>`` on local ranks with torchrun's variables; return the run's exit code.

    Must be called from the main thread, because it handles signals.

    Args:
        arguments: what follows the interpreter, e.g. ``["-P", "-m", "pipeline.cli", "train", ...]``.
        num_ranks: how many ranks to start.
        stop_timeout_seconds: how long ranks may take to save and leave after SIGINT, SIGTERM or SIGUSR1; a
            function is asked when the signal arrives.
        failure_timeout_seconds: how long the others may take to leave after a rank has failed.
        environment: variables added to this process's own.
        max_restarts: how often all ranks are started again after a failure that a restart may cure. The wait
            before a restart doubles from one second to a minute.
        open_logs: called before each start; returns a file for each rank, in existing folders, for all its
            output. None leaves the ranks this process's own output.

    Returns:
        0 if all ranks left with 0, else the code of the first rank that did not; 128 + N where signal N ended
        it. The code of a rank whose error no restart would cure counts before those of others. REQUEUE if a
        stop signal arrived before the ranks handled signals, because nothing was lost. INTERRUPTED after a
        second SIGINT, which kills the ranks at once.
    """
    launcher = _Launcher(stop_timeout_seconds, failure_timeout_seconds)
    previous = {number: signal.signal(number, launcher.forward) for number in STOP_SIGNALS}
    try:
        for restart in range(max_restarts + 1):
            logs = None if open_logs is None else open_logs()
            code = launcher.run(arguments, num_ranks, environment or {}, logs)
            is_final = launcher.is_stopping or code in FINAL_CODES or restart == max_restarts
            if is_final or not launcher.waits_before(restart + 1, max_restarts, code):
                break
        return code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class _Launcher:
    def __init__(
        self, stop_timeout_seconds: float | Callable[[], float], failure_timeout_seconds: float
    ) -> None:
        self._stop_timeout_seconds = stop_timeout_seconds
        self._failure_timeout_seconds = failure_timeout_seconds
        self._ranks = RankProcesses()
        self._received: signal.Signals | None = None
        self._num_interrupts = 0

    @property
    def is_stopping(self) -> bool:
        """Whether a stop signal was received."""
        return self._received is not None

    def run(
        self,
        arguments: Sequence[str],
        num_ranks: int,
        environment: Mapping[str, str],
        logs: Sequence[Path] | None,
    ) -> int:
        """Start all ranks and wait for them; none is left when it returns."""
        self._ranks = RankProcesses(
            stop_timeout_seconds=self._stop_timeout_seconds,
            failure_timeout_seconds=self._failure_timeout_seconds,
        )
        port = free_port()
        with tempfile.TemporaryDirectory(prefix="megaponder-") as folder:
            final_error = Path(folder) / FINAL_ERROR_NAME
            own = {**environment, FINAL_ERROR_VARIABLE: str(final_error)}
            try:
                for rank in range(num_ranks):
                    if self._received is not None:
                        break
                    variables = {**own, **_variables(rank, num_ranks, port)}
                    log = None if logs is None else logs[rank]
                    self._ranks.start([sys.executable, *arguments], variables, log=log)
                code = _unless_final(self._wait(), final_error)
            finally:
                self._ranks.kill()
        is_unheard = self._received not in (None, signal.SIGINT) and code == 128 + int(self._received or 0)
        return ExitCode.REQUEUE if is_unheard else code

    def waits_before(self, restart: int, max_restarts: int, code: int) -> bool:
        """Let some time pass before a restart; return False if a stop signal arrives meanwhile."""
        seconds = min(_FIRST_BACK_OFF_SECONDS * 2 ** (restart - 1), _LONGEST_BACK_OFF_SECONDS)
        logger.warning(
            "the run ended with exit code %d; restart %d of %d in %.0f s",
            code,
            restart,
            max_restarts,
            seconds,
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.is_stopping:
            time.sleep(_POLL_SECONDS)
        return not self.is_stopping

    def forward(self, number: int, _frame: FrameType | None) -> None:
        """Pass the first stop signal on to every rank; of later ones only a second SIGINT has an effect."""
        self._num_interrupts += number == signal.SIGINT
        if self._received is None:
            self._received = signal.Signals(number)
            self._ranks.stop(self._received)

    def _wait(self) -> int:
        """Wait until all ranks have left, killed if they must be; return the run's exit code."""
        failed: int | None = None
        while True:
            if self._num_interrupts >= 2:
                return ExitCode.INTERRUPTED
            codes = self._ranks.codes
            if failed is None:
                failed = first_failed(codes)
                if failed is not None:
                    self._note_failure(failed, codes)
            if None not in codes:
                break
            overdue = self._ranks.kill_overdue()
            if overdue:
                logger.error("ranks %s did not leave in time and are killed", overdue)
            time.sleep(_POLL_SECONDS)
        if failed is not None:
            return codes[failed] or ExitCode.DONE
        is_stopped_before_the_start = not codes and self._received is not None
        return 128 + int(self._received or 0) if is_stopped_before_the_start else ExitCode.DONE

    def _note_failure(self, failed: int, codes: Sequence[int | None]) -> None:
        code = codes[failed]
        assert code is not None, "a rank that has failed has ended"
        self._ranks.note_failure(code)
        if code not in AGREED_CODES and not self.is_stopping:
            logger.error(
                "rank %d of %d failed with exit code %d; stopping the others", failed, len(codes), code
            )


def _unless_final(code: int, final_error: Path) -> int:
    """Return the code that a rank has noted as final, where the run has failed; else the given one."""
    noted = read_final_error(final_error)
    if code in (ExitCode.DONE, ExitCode.INTERRUPTED) or noted is None:
        return code
    if code != noted.exit_code:
        logger.error("no restart would help: %s", noted.reason)
    return noted.exit_code


def _variables(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    return {
        # Ranks share the cores; torch would give all of them to each.
        "OMP_NUM_THREADS": threads_given(os.environ) or str(max(usable_cpus() // num_ranks, 1)),
        **rank_variables(
            rank=rank,
            local_rank=rank,
            world_size=num_ranks,
            local_world_size=num_ranks,
            address="127.0.0.1",
            port=port,
        ),
    }
