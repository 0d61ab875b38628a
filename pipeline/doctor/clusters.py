"""Whether jobs can be submitted from here: SLURM, Ray."""

import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from pipeline.checkpoint.origin import version_of
from pipeline.doctor.finding import Finding, State

__all__ = ["cluster_findings", "ray_finding", "slurm_finding"]

_SECONDS = 30
_RAY_SECONDS = 5
_RAY_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def cluster_findings() -> Iterator[Finding]:
    """Yield the findings on SLURM and Ray."""
    yield slurm_finding(sbatch=shutil.which("sbatch"), scontrol=shutil.which("scontrol"))
    yield ray_finding(os.environ, version_of("ray"))


def slurm_finding(*, sbatch: str | None, scontrol: str | None) -> Finding:
    """Return whether SLURM takes jobs from this machine.

    Args:
        sbatch, scontrol: paths of its programs; None if they are absent.
    """
    if sbatch is None or scontrol is None:
        found = "not on this machine; for submit --target slurm"
        cure = "run megaponder submit on a login node of the cluster"
        return Finding(name="SLURM", state=State.NOTE, found=found, cure=cure)
    version = _output([sbatch, "--version"]) or "of an unknown version"
    answer = _output([scontrol, "ping"])
    if answer is None or "UP" not in answer:
        return Finding(
            name="SLURM",
            state=State.WARNING,
            found=f"{version}, but its controller does not respond",
            cure="scontrol ping shows which one; ask the cluster's administrators",
        )
    return Finding(name="SLURM", state=State.OK, found=f"{version}, its controller responds")


def ray_finding(environment: Mapping[str, str], version: str | None) -> Finding:
    """Return whether a Ray cluster is named and responds.

    Args:
        environment: the variables that may name one.
        version: of the installed Ray; None if it is absent.
    """
    address = next((environment[name] for name in _RAY_VARIABLES if environment.get(name)), None)
    found = f"{version or 'not installed'}; no cluster is named"
    if address is None:
        cure = "for submit --target ray set RAY_API_SERVER_ADDRESS=http://HEAD:8265"
        return Finding(name="Ray", state=State.NOTE, found=found, cure=cure)
    if urlsplit(address).scheme not in ("http", "https"):
        found, cure = f"{version}; {address} is no address of the Jobs API", "set http://HEAD:8265"
        return Finding(name="Ray", state=State.WARNING, found=found, cure=cure)
    if not _responds(f"{address.rstrip('/')}/api/version"):
        return Finding(
            name="Ray",
            state=State.WARNING,
            found=f"{version}; {address} does not respond",
            cure="start the cluster (ray start --head), or correct RAY_API_SERVER_ADDRESS",
        )
    return Finding(name="Ray", state=State.OK, found=f"{version}; {address} responds")


def _output(command: list[str]) -> str | None:
    """Return what a program prints; None if it fails or takes too long."""
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()


def _responds(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=_RAY_SECONDS) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False
