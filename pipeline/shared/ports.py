"""TCP ports for servers that are started later, by another process."""

import socket
from contextlib import ExitStack

__all__ = ["free_port", "free_ports"]


def free_port() -> int:
    """Return a port that is free now; another process may take it before it is used."""
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """Return different ports that are free now on every interface of this machine."""
    with ExitStack() as probes:
        # All are bound at the same time: a port that is released at once may be given out again.
        sockets = [probes.enter_context(socket.socket()) for _ in range(number)]
        for probe in sockets:
            probe.bind(("", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]
