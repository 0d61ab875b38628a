"""TCP ports for servers that are started later, by another process."""

import socket
from contextlib import ExitStack
from pathlib import Path
from random import SystemRandom

__all__ = ["free_port", "free_ports"]

_EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST, _LAST = 10_000, 65_535
_MAX_ATTEMPTS = 100


def free_port() -> int:
    """Return a port that is free now; see `free_ports`."""
    return free_ports(1)[0]


def free_ports(number: int) -> list[int]:
    """Return different ports that are free now on every interface of this machine.

    They lie outside the range from which the kernel takes ports for outgoing connections, where there is room
    for that: a client of any process could otherwise occupy one before the server is started.
    """
    candidates = _ports_of_servers()
    with ExitStack() as probes:
        # All are bound at the same time: a port that is released at once may be given out again.
        return [_bind(probes.enter_context(socket.socket()), candidates) for _ in range(number)]


def _ports_of_servers() -> list[int]:
    try:
        low, high = map(int, _EPHEMERAL_RANGE.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return []
    return [*range(_FIRST, min(low, _LAST + 1)), *range(max(high + 1, _FIRST), _LAST + 1)]


def _bind(probe: socket.socket, candidates: list[int]) -> int:
    """Bind to a free one of the candidates, or to any free port if none is found; return it."""
    random = SystemRandom()
    for _ in range(_MAX_ATTEMPTS if candidates else 0):
        port = random.choice(candidates)
        try:
            probe.bind(("", port))
        except OSError:
            continue
        return port
    probe.bind(("", 0))
    return int(probe.getsockname()[1])
