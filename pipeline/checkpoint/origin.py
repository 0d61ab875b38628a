"""Which program computed something, and on what: recorded with runs and checkpoints. Needs no torch."""

import platform
import socket
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import ConfigDict, with_config

__all__ = ["Origin", "checkout_commit", "commit_of_checkout", "now", "origin_of_this_process", "version_of"]

_ROOT = Path(__file__).resolve().parents[2]
_GIT_SECONDS = 10


@with_config(ConfigDict(extra="ignore"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A program and where it ran.

    Attributes:
        version: of megaponder; None if it is not installed.
        commit: of the checkout that the program is, with ``+changes`` if tracked files differ; None if it is
            none.
        python, torch, megatron_core: versions.
        host: name of the machine of rank 0.
        device: of rank 0.
        num_ranks: of the run.
        started_at: when, as UTC in ISO 8601.
    """

    version: str | None
    commit: str | None
    python: str
    torch: str | None
    megatron_core: str | None
    host: str
    device: str
    num_ranks: int
    started_at: str

    @property
    def program(self) -> str:
        """Versions in a line."""
        commit = "" if self.commit is None else f" ({self.commit[:12]}{'+changes' * ('+' in self.commit)})"
        return (
            f"megaponder {self.version or 'unknown'}{commit}, torch {self.torch}, Megatron-Core "
            f"{self.megatron_core}, Python {self.python}"
        )

    @property
    def machine(self) -> str:
        """Device and machine in a line."""
        ranks = "1 rank" if self.num_ranks == 1 else f"{self.num_ranks} ranks"
        return f"{self.device}, {ranks}, {self.host}"


def origin_of_this_process(*, device: str, num_ranks: int) -> Origin:
    """Return which program this process is, and where it runs.

    Args:
        device: name of its device.
        num_ranks: of the run.
    """
    return Origin(
        version=version_of("megaponder"),
        commit=checkout_commit(),
        python=platform.python_version(),
        torch=version_of("torch"),
        megatron_core=version_of("megatron-core"),
        host=socket.gethostname(),
        device=device,
        num_ranks=num_ranks,
        started_at=now(),
    )


def now() -> str:
    """Return the time as UTC in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def version_of(package: str) -> str | None:
    """Return the version of an installed package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def checkout_commit() -> str | None:
    """Return the commit of the checkout that this program is, as :func:`commit_of_checkout` does."""
    return commit_of_checkout(_ROOT)


@cache
def commit_of_checkout(root: Path) -> str | None:
    """Return the commit of a git checkout, with ``+changes`` if tracked files differ; None if it is none.

    Args:
        root: the folder that holds ``.git``.
    """
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}+changes" if commit and changes else commit


def _git(root: Path, *arguments: str) -> str | None:
    try:
        finished = subprocess.run(
            ["git", *arguments],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=_GIT_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip()
