"""Waits with a limit, for work and conditions that have none of their own."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["wait_until", "within"]

Result = TypeVar("Result")


def within(seconds: float, action: Callable[[], Result]) -> Result | None:
    """Run an action that may block for ever, such as asking a server that is stopped.

    It runs in a thread of its own. A thread that does not return in time cannot be ended: it stays blocked
    and ends with the process.

    Returns:
        The action's result; None if it takes longer, or fails with an error.
    """
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(action()), daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None


def wait_until(condition: Callable[[], bool], *, seconds: float, poll_seconds: float = 0.1) -> bool:
    """Poll a condition until it holds; return False if it does not within ``seconds``.

    The condition is checked at least once. An error that it raises ends the wait.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(poll_seconds)
    return True
