"""A limit on the time of work that has none of its own, such as asking a server that may be stopped."""

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["within"]

Result = TypeVar("Result")


def within(seconds: float, action: Callable[[], Result]) -> Result | None:
    """Do something in a thread and wait for it; None where it takes longer, or fails with an error.

    The thread is left behind in its wait and ends with the process.
    """
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(action()), daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
