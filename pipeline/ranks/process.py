"""What launchers know of a rank's process: that it dies with them, how it ended, and who failed first."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence

from pipeline.shared.exit_codes import ExitCode

__all__ = ["AGREED_CODES", "code_of", "die_with_parent", "first_failed"]

_PR_SET_PDEATHSIG = 1
# Codes with which ranks leave together, by agreement.
AGREED_CODES = (ExitCode.USAGE, ExitCode.REQUEUE, ExitCode.DO_NOT_REQUEUE, ExitCode.INTERRUPTED)


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


def code_of(rank: subprocess.Popen[bytes]) -> int | None:
    """Return the exit code of a rank as a shell tells it, or None while it runs; the rank is not reaped."""
    left = os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if left is None:
        return None
    return left.si_status if left.si_code == os.CLD_EXITED else 128 + left.si_status


def first_failed(codes: Sequence[int | None]) -> int | None:
    """Return the rank that was the cause, of those that have failed.

    One rank's death makes the others fail: of several, one ended by a signal was the cause, else one whose
    code the others do not leave with by agreement.
    """
    failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
    return max(
        failed, key=lambda rank: ((codes[rank] or 0) > 128, codes[rank] not in AGREED_CODES), default=None
    )
