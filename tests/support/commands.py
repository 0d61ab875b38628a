"""Whole commands of megaponder as processes of their own, and what they leave behind."""

import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
COMMAND = ("-m", "pipeline.cli")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
# Long, because the machine may be busy; nothing that passes ever waits for it.
TIMEOUT_SECONDS = 300.0
# In the environment of a command and of every process that it starts.
MARK = "MEGAPONDER_COMMAND_MARK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a command ended and what it said; no process that it started is left."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A command under way."""

    process: subprocess.Popen[bytes]
    mark: str
    stdout: Path
    stderr: Path

    def rank(self, number: int) -> psutil.Process:
        """Return the process of one of its ranks."""
        return next(rank for rank in self.ranks() if rank.environ().get("RANK") == str(number))

    def ranks(self) -> list[psutil.Process]:
        """Return the processes of its ranks, as many as have been started."""
        return psutil.Process(self.process.pid).children()

    def finish(self) -> Finished:
        """Wait for its end; fail if it leaves a process behind."""
        exit_code = self.process.wait(TIMEOUT_SECONDS)
        stdout, stderr = self.stdout.read_text(), self.stderr.read_text()
        wait_until(lambda: not processes_with(self.mark), seconds=20.0, otherwise=stderr)
        return Finished(exit_code=exit_code, stdout=stdout, stderr=stderr)


def megaponder(*arguments: str) -> Finished:
    """Run `megaponder <arguments>`."""
    with started([*COMMAND, *arguments]) as command:
        return command.finish()


def megaponder_under_torchrun(num_ranks: int, *arguments: str) -> Finished:
    """Run `megaponder <arguments>` on ranks that torchrun starts."""
    with started([*TORCHRUN, str(num_ranks), *COMMAND, *arguments]) as command:
        return command.finish()


@contextmanager
def started(arguments: Sequence[str]) -> Iterator[Running]:
    """Start `python <arguments>`; whatever of it still runs at the end is killed."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout.open("wb"),
            stderr=stderr.open("wb"),
            env={**os.environ, MARK: mark, "COLUMNS": "200"},
            cwd=REPOSITORY,
        )
        try:
            yield Running(process=process, mark=mark, stdout=stdout, stderr=stderr)
        finally:
            for leftover in processes_with(mark):
                leftover.kill()
            process.wait()


def processes_with(mark: str) -> list[psutil.Process]:
    """Return the processes that carry a command's mark; dead ones that were not reaped have none."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def wait_until(
    condition: Callable[[], object], *, seconds: float = TIMEOUT_SECONDS, otherwise: str = ""
) -> None:
    """Wait for a condition, asking often; fail with the text after the time is up."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not reached within {seconds} seconds\n{otherwise}"
        time.sleep(0.01)
