"""What the machine and its operating system give: memory, disks, limits, ports, a container."""

import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from pipeline.doctor.finding import Finding, State
from pipeline.shared.cpus import usable_cpus

__all__ = [
    "container_finding",
    "disk_finding",
    "files_finding",
    "machine_findings",
    "ports_finding",
    "shm_finding",
]

_GIB = 2**30
_SHM = Path("/dev/shm")
_LEAST_SHM_BYTES = 2 * _GIB
_LEAST_DISK_BYTES = 10 * _GIB
_LEAST_FILES = 4096
_TORCHRUN_PORT = 29500
_SECONDS = 5


def machine_findings() -> Iterator[Finding]:
    """Yield the findings on this machine."""
    memory = psutil.virtual_memory()
    yield Finding(
        name="CPUs and memory",
        state=State.OK,
        found=f"{usable_cpus()} CPUs; {memory.available / _GIB:.1f} of {memory.total / _GIB:.1f} GiB free",
    )
    yield shm_finding(shutil.disk_usage(_SHM).free if _SHM.is_dir() else None)
    for name, folder in (("disk", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        yield disk_finding(name, folder, free=shutil.disk_usage(folder).free, writable=_is_writable(folder))
    yield files_finding(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield ports_finding(
        connects=_loopback_connects(), name=_name_is_known(), is_taken=not _can_bind(_TORCHRUN_PORT)
    )
    yield container_finding(os.environ, Path("/"))


def shm_finding(free: int | None) -> Finding:
    """Return whether there is enough shared memory, in bytes; None: none at all."""
    found = "/dev/shm does not exist" if free is None else f"{free / _GIB:.1f} GiB free in /dev/shm"
    if free is not None and free >= _LEAST_SHM_BYTES:
        return Finding(name="shared memory", state=State.OK, found=found)
    return Finding(
        name="shared memory",
        state=State.WARNING,
        found=found,
        cure="NCCL and Ray need 2 GiB or more: docker run --shm-size=16g, or a larger emptyDir of medium "
        "Memory on Kubernetes",
    )


def disk_finding(name: str, folder: Path, *, free: int, writable: bool) -> Finding:
    """Return whether files can be written to a folder.

    Args:
        name: what the folder is for.
        folder: that is asked about.
        free: bytes.
        writable: a file could be made there.
    """
    if not writable:
        cure = "change to a folder that you may write, or set TMPDIR"
        return Finding(name=name, state=State.WARNING, found=f"{folder} cannot be written", cure=cure)
    found = f"{free / _GIB:.1f} GiB free in {folder}"
    if free >= _LEAST_DISK_BYTES:
        return Finding(name=name, state=State.OK, found=found)
    cure = "free some: a checkpoint takes 14 bytes per parameter (set checkpoint.keep_last)"
    return Finding(name=name, state=State.WARNING, found=found, cure=cure)


def files_finding(limit: int) -> Finding:
    """Return whether a process may have enough files open."""
    if limit >= _LEAST_FILES or limit == resource.RLIM_INFINITY:
        return Finding(name="open files", state=State.OK, found="no limit" if limit < 0 else f"{limit:,}")
    return Finding(
        name="open files",
        state=State.WARNING,
        found=f"at most {limit:,}",
        cure="ulimit -n 65536 before a run with many shards or ranks",
    )


def ports_finding(*, connects: bool, name: bool, is_taken: bool) -> Finding:
    """Return whether ranks can meet.

    Args:
        connects: a connection from this machine to itself succeeds.
        name: the machine knows its own name.
        is_taken: something listens on the port that torchrun takes by default.
    """
    if not connects:
        cure = "allow connections to 127.0.0.1 (a firewall, or a network namespace without lo)"
        return Finding(name="ports", state=State.BROKEN, found="127.0.0.1 does not connect", cure=cure)
    if not name:
        return Finding(
            name="ports",
            state=State.WARNING,
            found=f"the name of this machine, {socket.gethostname()}, has no address",
            cure="add it to /etc/hosts or the DNS: ranks on several machines meet by it",
        )
    if is_taken:
        return Finding(
            name="ports",
            state=State.NOTE,
            found=f"{_TORCHRUN_PORT} is taken, which torchrun uses by default",
            cure="give torchrun another --rdzv-endpoint; megaponder itself takes free ports",
        )
    return Finding(
        name="ports", state=State.OK, found="127.0.0.1 connects, the machine's name has an address"
    )


def container_finding(environment: Mapping[str, str], root: Path) -> Finding:
    """Return in what kind of container this process runs.

    Args:
        environment: its variables.
        root: of its file system.
    """
    signs = {
        "Apptainer": "APPTAINER_CONTAINER" in environment or "SINGULARITY_CONTAINER" in environment,
        "Kubernetes": "KUBERNETES_SERVICE_HOST" in environment,
        "Podman": (root / "run" / ".containerenv").exists(),
        "Docker": (root / ".dockerenv").exists(),
    }
    found = [name for name, is_there in signs.items() if is_there]
    return Finding(name="container", state=State.OK, found=", ".join(found) or "none")


def _is_writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _loopback_connects() -> bool:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=_SECONDS).close()
    except OSError:
        return False
    return True


def _name_is_known() -> bool:
    try:
        socket.getaddrinfo(socket.gethostname(), None)
    except OSError:
        return False
    return True


def _can_bind(port: int) -> bool:
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return False
    return True
