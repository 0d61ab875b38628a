"""Processes forked from one that has imported torch and Megatron already.

Those imports take seconds of a core: most of what a tiny command or rank costs.
"""

import functools
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from tests.support.forked_ranks import fork_ranks

__all__ = ["ForkedProcess", "called_in_a_fork", "fork_context"]

_PRELOADED = ("pipeline.cli", "pipeline.run.start", "pipeline.evaluation.checkpoint", "pipeline.generation")


@functools.cache
def fork_context() -> ForkServerContext:
    """Return the context that starts such processes.

    The process that they are forked from starts with the first of them and ends with the tests.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED])
    return context


@dataclass(frozen=True, slots=True)
class ForkedProcess:
    """A forked process with those methods of `subprocess.Popen` that tests use."""

    process: ForkServerProcess

    @property
    def pid(self) -> int:
        assert self.process.pid is not None, "it has been started"
        return self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        code = self.poll()
        assert code is not None, f"it did not end within {timeout} seconds"
        return code

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()


def called_in_a_fork(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function in a forked process, whose ranks are forked too, and return its result.

    Raises:
        RuntimeError: with the traceback of what the function raised.
    """
    context = fork_context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(sender, function, arguments, named))
    process.start()
    sender.close()
    try:
        succeeded, result = receiver.recv()
    finally:
        process.kill()
        process.join()
    if not succeeded:
        raise RuntimeError(result)
    return result


def _call(
    sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    fork_ranks()
    try:
        sender.send((True, function(*arguments, **named)))
    except BaseException:
        sender.send((False, traceback.format_exc()))
