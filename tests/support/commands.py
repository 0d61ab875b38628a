"""Whole commands of megaponder, each in a process of its own, and what they leave behind."""

import gc
import importlib
import io
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.forked_ranks import fork_ranks, is_rank_of, name_of_rank
from tests.support.forks import ForkedProcess, fork_context

REPOSITORY = Path(__file__).parents[2]
COMMAND = ("-m", "pipeline.cli")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
# Long, because the machine may be busy; no test that passes waits for it.
TIMEOUT_SECONDS = 900.0
POLL_SECONDS = 0.01
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

    process: subprocess.Popen[bytes] | ForkedProcess
    mark: str
    stdout: Path
    stderr: Path

    def rank(self, number: int) -> psutil.Process:
        """Return the process of a rank."""
        name = name_of_rank(self.mark, str(number))
        return next(
            rank for rank in self.ranks() if rank.name() == name or rank.environ().get("RANK") == str(number)
        )

    def ranks(self) -> list[psutil.Process]:
        """Return the processes of the ranks that have been started."""
        return psutil.Process(self.process.pid).children()

    def has_ended(self, *, within_seconds: float) -> bool:
        """Wait for the end of the command, but not longer."""
        end = time.monotonic() + within_seconds
        while self.process.poll() is None and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
        return self.process.poll() is not None

    def finish(self) -> Finished:
        """Wait for the end of the command; fail if it leaves a process behind."""
        if not self.has_ended(within_seconds=TIMEOUT_SECONDS):
            raise AssertionError(f"it did not end in time\n{self.stderr.read_text()}")
        exit_code = self.process.poll()
        assert exit_code is not None
        stdout, stderr = self.stdout.read_text(), self.stderr.read_text()
        wait_until(lambda: not processes_with(self.mark), seconds=20.0, otherwise=stderr)
        return Finished(exit_code=exit_code, stdout=stdout, stderr=stderr)


def megaponder(
    *arguments: str,
    variables: Mapping[str, str | None] | None = None,
    is_read: bool = True,
    before: Callable[[], object] | None = None,
    kill_after_seconds: float | None = None,
    folder: Path = REPOSITORY,
) -> Finished:
    """Run `megaponder <arguments>` in a forked process, which need not import torch and Megatron again.

    Its ranks are forked from it, unless something is done to the process that a new Python would notice:
    with `variables` or `before` they are new processes.

    Args:
        arguments: of the command.
        variables: added to the environment; None removes one.
        is_read: False: its output goes into a pipe that nobody reads.
        before: what the process does before it becomes the command, such as setting a limit; importable.
        kill_after_seconds: kill it and all that it has started if it still runs then.
        folder: where it runs.
    """
    becoming = _Becoming(
        module="pipeline.cli",
        arguments=arguments,
        variables=variables or {},
        is_read=is_read,
        before=before,
        folder=folder,
    )
    with _forked(becoming) as command:
        if kill_after_seconds is not None and not command.has_ended(within_seconds=kill_after_seconds):
            command.process.kill()
            _kill_all(command.mark)
        return command.finish()


@contextmanager
def forked(*arguments: str, module: str = "pipeline.cli") -> Iterator[Running]:
    """Start `python -m module <arguments>` as :func:`megaponder` does; kill what still runs at the end."""
    with _forked(_Becoming(module=module, arguments=arguments)) as command:
        yield command


@dataclass(frozen=True, slots=True, kw_only=True)
class _Becoming:
    """The command that a forked process becomes; see :func:`megaponder`."""

    module: str
    arguments: Sequence[str]
    variables: Mapping[str, str | None] = field(default_factory=dict)
    is_read: bool = True
    before: Callable[[], object] | None = None
    folder: Path = REPOSITORY

    @property
    def forks_ranks(self) -> bool:
        return not self.variables and self.before is None


@contextmanager
def _forked(becoming: _Becoming) -> Iterator[Running]:
    mark = uuid.uuid4().hex
    changed = {**os.environ, "COLUMNS": "200", **becoming.variables, MARK: mark}
    environment = {name: value for name, value in changed.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        for path in (stdout, stderr):
            path.touch()
        outputs = (stdout, stderr) if becoming.is_read else None
        process = fork_context().Process(target=_main, args=(becoming, environment, outputs))
        process.start()
        try:
            yield Running(process=ForkedProcess(process), mark=mark, stdout=stdout, stderr=stderr)
        finally:
            process.kill()
            _kill_all(mark)


def _main(becoming: _Becoming, environment: Mapping[str, str], outputs: tuple[Path, Path] | None) -> None:
    """Become the command: its arguments, environment, folder and output."""
    # What has been imported stays, and need not be collected.
    gc.freeze()
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
    sys.argv = ["megaponder", *becoming.arguments]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(becoming.folder)
    if becoming.before is not None:
        becoming.before()
    if becoming.forks_ranks:
        fork_ranks(environment[MARK])
    importlib.import_module(becoming.module).main()


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
            if is_rank_of(mark, process) or process.environ().get(MARK) == mark:
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
        time.sleep(POLL_SECONDS)
