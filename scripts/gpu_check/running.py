"""Run each check in a process of its own, which is ended at its limit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from scripts.gpu_check.checks import Check
from scripts.gpu_check.outcome import OUTCOME_NAME, Outcome, Status, load_outcome

# Less is not enough to import torch and Megatron.
LEAST_SECONDS = 15.0
LOG_NAME = "log.txt"


def run_checks(
    checks: Sequence[Check], folder: Path, *, is_tiny: bool, total_seconds: float
) -> Iterator[Outcome]:
    """Run checks one after another.

    Args:
        checks: in their order.
        folder: of the results; each check has a folder of its own in it.
        is_tiny: take sizes for a CPU also on a GPU.
        total_seconds: for all of them; those for which no time is left are left out.
    """
    deadline = time.monotonic() + total_seconds
    for check in checks:
        seconds = min(check.limit_seconds, deadline - time.monotonic())
        if seconds < LEAST_SECONDS:
            yield Outcome(name=check.name, status=Status.LEFT_OUT, summary="no time was left")
            continue
        yield run_check(check, folder / check.name, is_tiny=is_tiny, seconds=seconds)


def run_check(check: Check, folder: Path, *, is_tiny: bool, seconds: float) -> Outcome:
    """Run one check for at most so many seconds; its output is in `log.txt` of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OUTCOME_NAME).unlink(missing_ok=True)
    command = [sys.executable, "-m", "scripts.gpu_check.child", check.name, str(folder)]
    started = time.monotonic()
    with (folder / LOG_NAME).open("wb") as log:
        # Its own group, so that whatever it starts ends with it.
        process = subprocess.Popen(
            [*command, "tiny" if is_tiny else "full"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        is_overdue = not _ends_within(process, seconds)
    spent = time.monotonic() - started
    outcome = load_outcome(folder / OUTCOME_NAME)
    if is_overdue:
        known = outcome or Outcome(name=check.name, status=Status.OVERDUE)
        text = f"ended after {seconds:.0f} s; see {folder / LOG_NAME}"
        return replace(known, status=Status.OVERDUE, summary=text, seconds=spent)
    if outcome is None:
        text = f"left with exit code {process.returncode}; see {folder / LOG_NAME}"
        return Outcome(name=check.name, status=Status.CRASHED, summary=text, seconds=spent)
    return replace(outcome, seconds=spent)


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Wait for a process, and end its group in any case; return whether it ended by itself."""
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
