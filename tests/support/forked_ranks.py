"""Ranks that are forked from the process that launches them instead of importing torch and Megatron again.

What the launcher asks of `subprocess` is done: process group, output, death with the parent, exit code.
Instead of executing Python, the forked process forgets what its parent has set up and calls the `main` of
the module.
"""

import atexit
import ctypes
import faulthandler
import gc
import importlib
import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

__all__ = ["fork_ranks", "is_rank_of", "name_of_rank"]

# Each has a function `main`, before which starting it does nothing.
_MODULES = (
    "pipeline.cli",
    "pipeline.verification.parity.worker",
    "tests.support.failing_training",
    "tests.support.golden.worker",
)
_PR_SET_NAME = 15
_THREADS = Path("/proc/self/task")
# They touch a file every few seconds, and hold no lock that another thread takes.
_THREADS_THAT_WAIT = ("folder lock",)
# Linux keeps fifteen characters of a name.
_MARK_LENGTH = 10


def fork_ranks(mark: str = "", *, modules: Sequence[str] = _MODULES) -> None:
    """Let this process, which must have imported torch and Megatron, fork the ranks that it launches.

    Args:
        mark: begins the names of these processes; see :func:`name_of_rank`.
        modules: that ranks run.
    """
    _ForkingPopen.mark, _ForkingPopen.modules = mark, modules
    subprocess.Popen = _ForkingPopen  # type: ignore[misc, assignment]


def name_of_rank(mark: str, rank: str) -> str:
    """Return the name of a forked rank: its environment, as the kernel shows it, is that of an ancestor."""
    return f"{mark[:_MARK_LENGTH]}:{rank}"


def is_rank_of(mark: str, process: psutil.Process) -> bool:
    """Return whether a running process is such a rank."""
    return process.name().startswith(name_of_rank(mark, "")) and process.status() != psutil.STATUS_ZOMBIE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    """A command line of Python that runs a module of ours."""

    module: str
    arguments: list[str]
    is_silent: bool


class _ForkingPopen(subprocess.Popen[bytes]):
    """Starts `python -m MODULE` by a fork where that is possible, all else as usual."""

    mark = ""
    modules: Sequence[str] = ()

    def __init__(
        self,
        args: Any,
        *further: Any,
        env: Mapping[str, str] | None = None,
        preexec_fn: Callable[[], Any] | None = None,
        **named: Any,
    ) -> None:
        started = _parsed(args, self.modules) if _can_fork() else None
        if started is not None:
            # What is buffered would be written by both.
            sys.stdout.flush()
            sys.stderr.flush()
            environment = dict(os.environ if env is None else env)
            # It does not return, so that nothing is executed.
            preexec_fn = partial(_become, started, environment, preexec_fn, self.mark)
        super().__init__(args, *further, env=env, preexec_fn=preexec_fn, **named)  # type: ignore[call-overload]


def _can_fork() -> bool:
    """Return whether no other thread may hold a lock that nobody would release in the forked process."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    are_ours = len([*_THREADS.iterdir()]) == 1 + len(others)
    return are_ours and all(thread.name in _THREADS_THAT_WAIT for thread in others)


def _parsed(command: Sequence[str], modules: Sequence[str]) -> _Started | None:
    """Return what a command line runs, None if it is not a module of ours."""
    if isinstance(command, str) or command[0] != sys.executable:
        return None
    options, is_silent = list(command[1:]), False
    while options and options[0] in ("-P", "-W"):
        is_silent |= options.pop(0) == "-W" and options.pop(0) == "ignore"
    if options[:1] != ["-m"] or options[1] not in modules:
        return None
    return _Started(module=options[1], arguments=options[2:], is_silent=is_silent)


def _become(
    started: _Started, environment: dict[str, str], preexec: Callable[[], Any] | None, mark: str
) -> None:
    """Be the new process to its end."""
    code = 1
    try:
        if preexec is not None:
            preexec()
        _forget_the_parent()
        os.environ.clear()
        os.environ.update(environment)
        _prepare(started, name_of_rank(mark, environment.get("RANK", "")))
        code = _code_of(importlib.import_module(started.module).main)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _forget_the_parent() -> None:
    """Drop what a new process would not have: handlers, files, streams; destroy no object of the parent."""
    subprocess.Popen = _ForkingPopen.__base__  # type: ignore[assignment,misc]
    gc.freeze()
    gc.enable()
    atexit._clear()
    faulthandler.disable()
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    sys.excepthook, threading.excepthook = sys.__excepthook__, threading.__excepthook__
    # The parent waits until its pipe to this process is closed; its locks are not ours.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _prepare(started: _Started, name: str) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)
    sys.argv = [started.module, *started.arguments]
    if started.is_silent:
        warnings.simplefilter("ignore")
    if os.environ.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)  # type: ignore[union-attr]
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if "torch" in sys.modules and threads.isdigit():
        sys.modules["torch"].set_num_threads(int(threads))


def _code_of(main: Callable[[], object]) -> int:
    """Return the exit code that Python would leave with."""
    code = 0
    try:
        main()
    except SystemExit as error:
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)  # noqa: T201
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code
