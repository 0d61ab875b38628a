"""A running Ray cluster: this command connects to it, and never stops it."""

import logging
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from data_prep.on_ray.interrupts import environment, terminate_like_interrupt
from data_prep.on_ray.local import QUIET_RAY
from data_prep.on_ray.node_check import NodeReport, Probe, check_node, installed_programs
from data_prep.tasks import ShardTask
from pipeline.shared.errors import DataError

CONNECT_SECONDS = 10.0
NODE_CHECK_SECONDS = 120.0
# HTTP/2: a frame's length in three bytes, its type, flags and stream.
_SETTINGS_FRAME = b"\x04"
_EMPTY_SETTINGS = b"\0\0\0" + _SETTINGS_FRAME + b"\0" * 5


@contextmanager
def cluster_ray(address: str, tasks: Sequence[ShardTask]) -> Iterator[None]:
    """Connect to a Ray cluster, and check that all its machines can do the tasks.

    Args:
        address: of its head, ``HOST:PORT``; this machine is one of its nodes.
        tasks: the work.
    Raises:
        DataError: there is no such cluster, or one of its machines lacks programs or files.
    """
    _check_reachable(address)
    import ray

    from data_prep.on_ray.job_config import worker_imports

    with environment(QUIET_RAY), terminate_like_interrupt():
        try:
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                job_config=worker_imports(),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise DataError(
                f"--ray-address {address} must be a Ray cluster of which this machine is a node, with the "
                f"Ray and Python of this command, but Ray reports: {_reason(error)}"
            ) from error
        try:
            with terminate_like_interrupt():
                _check_nodes(address, tasks)
                yield
        finally:
            # This disconnects from a cluster that others started, without stopping it.
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Check that a Ray responds: Ray itself would retry for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS) as connection:
            greeting = _greeting(connection)
    except (OSError, ValueError) as error:
        raise DataError(
            f"--ray-address must be HOST:PORT of the head of a running Ray, but {address} cannot be "
            f"connected to ({error}); `ray status` there shows the address"
        ) from error
    if greeting[3:4] != _SETTINGS_FRAME:
        raise DataError(
            f"--ray-address must be HOST:PORT of the head of a running Ray, but at {address} is something "
            "else; `ray status` there shows the address"
        )


def _greeting(connection: socket.socket) -> bytes:
    """Return the first nine bytes of a server's response to a client of HTTP/2, the protocol of Ray."""
    if os.environ.get("RAY_USE_TLS") == "1":
        return _EMPTY_SETTINGS  # the server requires a certificate, which Ray has
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _EMPTY_SETTINGS)
    return connection.recv(len(_EMPTY_SETTINGS), socket.MSG_WAITALL)


def _reason(error: BaseException) -> str:
    """Return the first line of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]


def _check_nodes(address: str, tasks: Sequence[ShardTask]) -> None:
    """Run a check on every machine that has CPUs."""
    output = tasks[0].output
    probe = Probe(
        file=output / f".probe-{secrets.token_hex(6)}",
        content=secrets.token_hex(16),
        input_location=tasks[0].shard.ranges[0].file.location,
    )
    probe.file.write_text(probe.content)
    try:
        reports = _node_reports(address, probe)
    finally:
        probe.file.unlink()
    here = installed_programs()
    findings = [finding for report in reports if (finding := describe_lack(report, here)) is not None]
    if findings:
        raise DataError(
            f"every machine of the Ray at {address} must have the programs of this one and the input and "
            f"output folders at the same paths, but {'; '.join(findings)}; install the same version on "
            "all, and put both folders on a shared file system"
        )


def _node_reports(address: str, probe: Probe) -> list[NodeReport]:
    import ray
    import ray.exceptions
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    every: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["NodeID"] for node in every if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
    if not nodes:
        raise DataError(f"the Ray at {address} must have machines with CPUs, but has none")
    check: Any = ray.remote(num_cpus=0, max_retries=0)(check_node)
    try:
        places = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
        answers = [check.options(scheduling_strategy=place).remote(probe) for place in places]
        reports = [report for answer in answers if (report := _report_of(answer)) is not None]
    except ray.exceptions.RayError as error:
        raise DataError(
            f"every machine of the Ray at {address} must be able to run data_prep, but one does not "
            f"({type(error).__name__}: {str(error).strip().splitlines()[-1]}); install this package there"
        ) from error
    return reports


def _report_of(answer: Any) -> NodeReport | None:
    """Return a machine's report; None if it was lost before, when it gets no work."""
    import ray
    import ray.exceptions

    try:
        report: NodeReport = ray.get(answer, timeout=NODE_CHECK_SECONDS)
    except (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError):
        return None
    return report


def describe_lack(report: NodeReport, here: dict[str, str]) -> str | None:
    """Return what a machine lacks to do the same work as one with the programs of ``here``, or None."""
    differing = [name for name in here if report.programs.get(name) != here[name]]
    if differing:
        versions = ", ".join(f"{name} {report.programs.get(name)} (here {here[name]})" for name in differing)
        return f"{report.host} has {versions}"
    return None if report.finding is None else f"on {report.host} {report.finding}"
