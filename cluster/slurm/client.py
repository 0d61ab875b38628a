"""SLURM's own commands, each with a time limit and errors that users can act on."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.slurm.refusals import refusal
from pipeline.shared.errors import ClusterError

# The commands themselves give up on a controller after about 20 s.
LIMIT_SECONDS = 60.0
_FORGOTTEN = "Invalid job id specified"
_FIELD = re.compile(r"(?:^|\s)(\w+)=(\S*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """What the controller says of a job.

    Attributes:
        state: such as PENDING.
        reason: why it waits or has ended; empty where there is none.
        exit_code: of the batch script as a shell tells it.
        nodes: of the job, compressed as SLURM writes them.
    """

    state: str
    reason: str
    exit_code: int
    nodes: str


def submit_script(script: Path, *arguments: str, dependency: str | None = None) -> str:
    """Hand a script to sbatch; return the id of the job.

    Raises:
        ClusterError: it was refused, or the controller does not answer.
    """
    options = [f"--dependency={dependency}"] if dependency else []
    answer = _run(["sbatch", "--parsable", *options, str(script), *arguments], what="take the job")
    # Federations add their cluster's name: 123;name.
    return answer.strip().partition(";")[0]


def show_job(job: str) -> JobInfo | None:
    """Ask for a job; None where the controller has forgotten it, as it does minutes after the end.

    Raises:
        ClusterError: the controller does not answer.
    """
    try:
        text = _run(["scontrol", "--oneliner", "show", "job", job], what="show the job")
    except _ForgottenJobError:
        return None
    # Of an array's job that waits with others SLURM shows one line, and of a whole array several.
    fields = dict(_FIELD.findall(text.splitlines()[0]))
    code, _, number = fields.get("ExitCode", "0:0").partition(":")
    reason, nodes = fields.get("Reason", ""), fields.get("NodeList", "")
    return JobInfo(
        state=fields.get("JobState", ""),
        reason="" if reason == "None" else reason,
        exit_code=int(code) or (128 + int(number) if int(number or 0) else 0),
        nodes="" if nodes == "(null)" else nodes,
    )


def signal_ranks(job: str) -> None:
    """Send SIGTERM to the ranks of a job, and to nothing else of it.

    Raises:
        ClusterError: the controller does not answer.
    """
    _run(["scancel", "--signal=TERM", job], what="signal the job")


def cancel_job(job: str) -> None:
    """End a job, wherever it is.

    Raises:
        ClusterError: the controller does not answer, or forbids it.
    """
    _run(["scancel", job], what="cancel the job")


def start_again(job: str) -> bool:
    """Put a job that has ended back into the queue; whether SLURM still can.

    Raises:
        ClusterError: the controller does not answer.
    """
    try:
        _run(["scontrol", "requeue", job], what="start the job again")
    except _ForgottenJobError:
        return False
    return True


class _ForgottenJobError(ClusterError):
    """The controller does not know the job any more."""


def _run(command: Sequence[str], *, what: str) -> str:
    try:
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(
            f"SLURM must be installed where jobs are submitted, but there is no {command[0]}; log in to the "
            "cluster, or choose another --target"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"SLURM's controller must answer within {LIMIT_SECONDS:.0f} s, but {command[0]} has heard "
            "nothing; try again, or ask the cluster's administrators (`scontrol ping` asks it)"
        ) from error
    if finished.returncode == 0:
        return finished.stdout
    if _FORGOTTEN in finished.stderr:
        raise _ForgottenJobError(f"SLURM knows no job {command[-1]} any more")
    raise ClusterError(refusal(finished.stderr, what=what))
