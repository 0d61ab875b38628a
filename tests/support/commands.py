"""Whole commands of megaponder, each in a process of its own, and what they leave behind."""

import io
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support.forks import fork_context

REPOSITORY = Path(__file__).parents[2]
COMMAND = ("-m", "pipeline.cli")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
# Long, because the machine may be busy; no test that passes waits for it.
TIMEOUT_SECONDS = 900.0
# In the environment of a command and of every process that it starts.
MARK = "MEGAPONDER_COMMAND_MARK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The result of a command, which has left no process."""

    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A command that is running."""

    process: subprocess.Popen[bytes]
    mark: str
    stdout: Path
    stderr: Path

    def rank(self, number: int) -> psutil.Process:
        """Return the process of a rank."""
        return next(rank for rank in self.ranks() if rank.environ().get("RANK") == str(number))

    def ranks(self) -> list[psutil.Process]:
        """Return the processes of the ranks that have been started."""
        return psutil.Process(self.process.pid).children()

    def finish(self) -> Finished:
        """Wait for the end of the command; fail if it leaves a process behind."""
        exit_code = self.process.wait(TIMEOUT_SECONDS)
        stdout, stderr = self.stdout.read_text(), self.stderr.read_text()
        wait_until(lambda: not processes_with(self.mark), seconds=20.0, otherwise=stderr)
        return Finished(exit_code=exit_code, stdout=stdout, stderr=stderr)


def megaponder(
    *arguments: str,
    variables: Mapping[str, str | None] | None = None,
    is_read: bool = True,
    before: Callable[[], object] | None = None,
    kill_after_seconds: float | None = None,
) -> Finished:
    """Run `megaponder <arguments>` in a forked process, which need not import torch and Megatron again.

    Ranks that the command launches are new processes.

    Args:
        arguments: of the command.
        variables: added to the environment; None removes one.
        is_read: False: its output goes into a pipe that nobody reads.
        before: what the process does before it becomes the command, such as setting a limit; importable.
        kill_after_seconds: kill it and all that it has started if it still runs then.
    """
    mark = uuid.uuid4().hex
    changed = {**os.environ, "COLUMNS": "200", **(variables or {}), MARK: mark}
    environment = {name: value for name, value in changed.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        outputs = (stdout, stderr) if is_read else None
        for path in (stdout, stderr):
            path.touch()
        process = fork_context().Process(target=_main, args=(arguments, environment, outputs, before))
        process.start()
        try:
            process.join(TIMEOUT_SECONDS if kill_after_seconds is None else kill_after_seconds)
            if kill_after_seconds is not None and process.exitcode is None:
                process.kill()
                _kill_all(mark)
                process.join(TIMEOUT_SECONDS)
            assert process.exitcode is not None, f"{arguments} did not finish in time\n{stderr.read_text()}"
            wait_until(lambda: not processes_with(mark), seconds=20.0, otherwise=stderr.read_text())
            return Finished(exit_code=process.exitcode, stdout=stdout.read_text(), stderr=stderr.read_text())
        finally:
            process.kill()
            _kill_all(mark)


def _main(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    outputs: tuple[Path, Path] | None,
    before: Callable[[], object] | None,
) -> None:
    """Become the command: its arguments, environment, folder and output."""
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 (a device, not a path)
        os.dup2(nothing.fileno(), 0)
    if outputs is None:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, 1)
        os.dup2(writer, 2)
    else:
        for number, path in enumerate(outputs, start=1):
            with path.open("wb") as file:
                os.dup2(file.fileno(), number)
    if "PYTHONIOENCODING" in environment:
        # Python reads it when it starts, which this process did long ago.
        for stream in (sys.stdout, sys.stderr):
            assert isinstance(stream, io.TextIOWrapper)
            stream.reconfigure(encoding=environment["PYTHONIOENCODING"], errors="strict")
    sys.argv = ["megaponder", *arguments]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    if before is not None:
        before()
    from pipeline.cli import main

    main()


def megaponder_under_torchrun(num_ranks: int, *arguments: str) -> Finished:
    """Run `megaponder <arguments>` on ranks that torchrun starts."""
    with started([*TORCHRUN, str(num_ranks), *COMMAND, *arguments]) as command:
        return command.finish()


@contextmanager
def started(arguments: Sequence[str]) -> Iterator[Running]:
    """Start `python <arguments>`; kill what still runs of it at the end."""
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
            _kill_all(mark)
            process.wait()


def _kill_all(mark: str) -> None:
    for leftover in processes_with(mark):
        leftover.kill()


def processes_with(mark: str) -> list[psutil.Process]:
    """Return the processes that carry the mark of a command, without zombies."""
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
    """Wait for a condition; fail with the text when the time has passed."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not reached within {seconds} seconds\n{otherwise}"
        time.sleep(0.01)
