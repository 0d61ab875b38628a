"""Ray's own client of its Jobs API, with bounded waits and errors that users can act on."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ray.job_submission import JobSubmissionClient

from pipeline.shared.bounded import within
from pipeline.shared.errors import ClusterError, UnreachableClusterError

RESPONSE_SECONDS = 10.0
# Of a whole response: a server may send a byte from time to time.
_LONGEST_RESPONSE_SECONDS = 60.0
# The cluster is asked directly: a proxy is there for the rest of the world.
_WITHOUT_PROXY = {"no_proxy": "*", "NO_PROXY": "*"}
# Ray's client prefers these to the address it is given.
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")

Response = TypeVar("Response")


class UnreachableRayError(UnreachableClusterError):
    """No Ray responds at the address."""


class BoundedClient(JobSubmissionClient):
    """Ray's client, which waits for a response only so long."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=RESPONSE_SECONDS, **options)


def address_of(address: str | None) -> str:
    """Return where the Jobs API is.

    Raises:
        ClusterError: no address is given, or it is not one of a dashboard.
    """
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    if not found:
        raise ClusterError(
            "the Ray cluster must have an address, but neither --ray-address, submit.ray_address nor "
            "RAY_API_SERVER_ADDRESS is set; it is the address of the dashboard, such as http://head:8265"
        )
    if not found.startswith(("http://", "https://")):
        raise ClusterError(
            f"the address of the Ray cluster must be that of its dashboard, such as http://head:8265, but is "
            f"{found}; `ray start --head` prints it"
        )
    return found


def ask(address: str, question: Callable[[JobSubmissionClient], Response]) -> Response:
    """Query the Jobs API of a cluster.

    Args:
        address: URL of its dashboard.
        question: called with the client.

    Raises:
        UnreachableRayError: there is no such Ray, or it does not respond in time.
        ClusterError: it refuses.
    """
    try:
        with _only_this_address():
            return _within_limit(lambda: question(BoundedClient(address)))
    except OSError as error:
        raise UnreachableRayError(
            f"the Jobs API of a Ray must respond at {address}, but nothing does within "
            f"{RESPONSE_SECONDS:.0f} s ({_first_line(error)}); check that the head runs, that ray[default] "
            "is installed there, and that this machine may connect to its dashboard port"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise ClusterError(f"the Ray at {address} refuses: {_first_line(error)}") from error


def _within_limit(action: Callable[[], Response]) -> Response:
    """Return what an action returns, or raise its error.

    Raises:
        TimeoutError: it takes too long.
    """
    errors: list[Exception] = []

    def run() -> list[Response]:
        try:
            return [action()]
        except Exception as error:
            errors.append(error)
            return []

    finished = within(_LONGEST_RESPONSE_SECONDS, run)
    if errors:
        raise errors[0]
    if finished is None:
        raise TimeoutError(f"no complete response within {_LONGEST_RESPONSE_SECONDS:.0f} s")
    return finished[0]


@contextmanager
def _only_this_address() -> Iterator[None]:
    names = (*_ADDRESS_VARIABLES, *_WITHOUT_PROXY)
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(_WITHOUT_PROXY)
    try:
        yield
    finally:
        for name in _WITHOUT_PROXY:
            os.environ.pop(name, None)
        os.environ.update(before)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
