"""A real Ray of one or several nodes on this machine, that is none of the command's own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from pipeline.shared.ports import free_port, free_ports

START_SECONDS = 60.0
# A lost node shows after 1.6 s instead of 15.
_FAST_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
_STARTED = "Ray runtime started"
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # whether or not the user has a token of Ray's
    "RAY_AUTH_MODE": "disabled",
}
_COMMON = (
    "--block",
    # any free ports: the usual range of the workers' may be another Ray's
    "--min-worker-port=0",
    "--max-worker-port=0",
    "--object-store-memory=100000000",
    "--disable-usage-stats",
)


@contextmanager
def ray_head(folder: Path, *, num_cpus: int = 2, variables: Mapping[str, str] | None = None) -> Iterator[str]:
    """Start the head of a Ray, yield its address, and stop it.

    Args:
        folder: for Ray's files; its path must be short.
        num_cpus: CPUs the node says it has.
        variables: added to the environment of all its processes.
    """
    address = f"{_own_address()}:{free_port()}"
    host, _, port = address.partition(":")
    options = ["--head", f"--port={port}", f"--node-ip-address={host}", f"--num-cpus={num_cpus}"]
    more = ["--include-dashboard=false", f"--temp-dir={folder}/t"]
    with _node(folder / "head", [*options, *more], variables or {}):
        yield address


@dataclass(kw_only=True)
class RayCluster:
    """A Ray of several nodes with its Jobs API.

    Attributes:
        address: of the head, HOST:PORT.
        url: of the Jobs API.
    """

    folder: Path
    address: str
    url: str
    variables: Mapping[str, str]
    _nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def add_node(self, name: str) -> None:
        """Start a node with one CPU."""
        options = [f"--address={self.address}", "--num-cpus=1", "--dashboard-agent-listen-port=0"]
        self._nodes[name] = self._stack.enter_context(_node(self.folder / name, options, self.variables))

    def kill_node(self, name: str) -> None:
        """Kill all processes of a node at once, as a power failure does."""
        process = self._nodes.pop(name)
        members = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for member in members:
            member.suspend()
        for member in members:
            member.kill()
        process.wait()


@contextmanager
def ray_cluster(folder: Path, *, variables: Mapping[str, str] | None = None) -> Iterator[RayCluster]:
    """Start a Ray of a head and one more node, each with one CPU, and stop all its nodes at the end.

    Args:
        folder: for Ray's files; its path must be short.
        variables: added to the environment of all its processes.
    """
    host, port, dashboard, agent, client = _own_address(), *free_ports(4)
    options = ["--head", f"--port={port}", f"--node-ip-address={host}", "--num-cpus=1"]
    options += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    options += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"]
    variables = {**_FAST_HEALTH_CHECKS, **(variables or {})}
    with _node(folder / "head", [*options, f"--temp-dir={folder}/t"], variables), ExitStack() as stack:
        cluster = RayCluster(
            folder=folder,
            address=f"{host}:{port}",
            url=f"http://127.0.0.1:{dashboard}",
            variables=variables,
            _stack=stack,
        )
        cluster.add_node("node1")
        yield cluster


@contextmanager
def _node(log: Path, options: list[str], variables: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, *_COMMON]
    environment = {**os.environ, **_QUIET, **variables}
    with ExitStack() as stack:
        output = stack.enter_context(log.open("wb"))
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, start_new_session=True, cwd=log.parent
        )
        stack.callback(_stop, process)
        end = time.monotonic() + START_SECONDS
        while _STARTED not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield process


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _own_address() -> str:
    """The address by which Ray names this machine, whatever it is called by."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # nothing is sent: it asks which interface would
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        address: str = probe.getsockname()[0]
        return address
