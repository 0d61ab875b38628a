"""Commands that are killed at any moment and started again until they are done."""

import hashlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.support.commands import Finished, megaponder

# Environment variables by which `make soak` is made shorter or longer, and repeated.
NUM_KILLS = int(os.environ.get("SOAK_KILLS", "200"))
SEED = int(os.environ.get("SOAK_SEED", "20"))
# Names of what is being written; a command that is done has left none.
LEFTOVERS = (".*.tmp-*", "*.partial", ".probe_*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A command, and what it leaves when nothing disturbs it.

    Attributes:
        name: for the report.
        arguments: of the command, for a folder of outputs.
        outcome: what must be the same, read from that folder.
        seconds: that it takes.
    """

    name: str
    arguments: Callable[[Path], Sequence[str]]
    outcome: Callable[[Path], object]
    seconds: float

    def run(self, folder: Path) -> Finished:
        """Run the command to its end."""
        return megaponder(*self.arguments(folder))

    def kill_somewhere(self, folder: Path, random: Random) -> float:
        """Start the command and kill it after a random time; return that time."""
        seconds = random.uniform(0.0, 1.1 * self.seconds)
        megaponder(*self.arguments(folder), kill_after_seconds=seconds)
        return seconds


def measured(
    name: str, arguments: Callable[[Path], Sequence[str]], outcome: Callable[[Path], object], folder: Path
) -> tuple[Work, object]:
    """Run a command once; return it with its duration, and its outcome."""
    started = time.monotonic()
    work = Work(name=name, arguments=arguments, outcome=outcome, seconds=0.0)
    finished = work.run(folder)
    assert finished.exit_code == 0, finished.stderr
    seconds = time.monotonic() - started
    return Work(name=name, arguments=arguments, outcome=outcome, seconds=seconds), outcome(folder)


def digests(folder: Path, *patterns: str) -> Mapping[str, str]:
    """Return the SHA-256 of files by their names."""
    files = [path for pattern in patterns for path in sorted(folder.rglob(pattern)) if path.is_file()]
    assert files, f"{folder} has no {patterns}"
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def leftovers(folder: Path) -> list[Path]:
    """Return what an interrupted write has left."""
    return [path for pattern in LEFTOVERS for path in folder.rglob(pattern)]


def was_killed(exit_code: int) -> bool:
    """Return whether a command ended by our kill."""
    return exit_code == -signal.SIGKILL
