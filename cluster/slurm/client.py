"""SLURM's own commands, each with a time limit and errors that users can act on."""

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.shared.errors import ClusterError, UnreachableClusterError

# The commands themselves give up on a controller after about 20 s.
LIMIT_SECONDS = 60.0
_FORGOTTEN = "Invalid job id specified"
_UNREACHABLE = re.compile(
    r"Unable to contact slurm controller|Connection refused|connect failure|Unable to establish|"
    r"Socket timed out|Zero Bytes were transmitted|Transport endpoint is not connected"
)
# Of the job in which `submit` itself may run, such as an interactive one.
_OF_A_JOB = ("SLURM_", "SLURMD_", "PMI_", "PMIX_")
_OF_THE_CLUSTER = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
# Variables win over options in a script. A user's defaults serve what it leaves open: none of these.
_NEVER_OPEN = (
    *("SBATCH_ARRAY_INX", "SBATCH_EXPORT", "SBATCH_GET_USER_ENV", "SBATCH_JOB_NAME", "SBATCH_NO_REQUEUE"),
    *("SBATCH_OPEN_MODE", "SBATCH_REQUEUE", "SBATCH_SIGNAL", "SBATCH_WAIT"),
)
_GIVEN = re.compile(r"^#SBATCH --([a-z-]+)", re.MULTILINE)
_OTHER_NAMES = {"time": "SBATCH_TIMELIMIT", "mem": "SBATCH_MEM_PER_NODE"}
_FIELD = re.compile(r"(?:^|\s)(\w+)=(\S*)")
# Patterns of SLURM's messages, and the cure. The first match counts.
_CURES: tuple[tuple[str, str], ...] = (
    (
        r"[Ii]nvalid partition",
        "submit.partition must be one of the cluster's (`sinfo -h -o %R` lists them)",
    ),
    (
        r"Invalid account",
        "submit.account must be one that may use the partition (`sacctmgr show associations user=$USER` "
        "lists yours)",
    ),
    (r"Invalid qos", "submit.qos must be one that the account may use (`sacctmgr show qos` lists them)"),
    (
        r"time limit is invalid",
        "submit.wall_time must be within the partition's limit (`sinfo -o '%R %l'` shows it); for longer "
        "runs set submit.chain",
    ),
    (r"Invalid feature", "submit.constraint must name features of nodes (`sinfo -o '%n %f'` lists them)"),
    (
        r"Invalid generic resource|Invalid GRES|[Nn]ode configuration is not available"
        r"|More processors requested|Node count specification invalid"
        r"|Memory specification can not be satisfied|Requested nodes",
        "submit.nodes, gpus_per_node, cpus_per_rank and memory_per_node must fit the partition's nodes "
        "(`sinfo -N -o '%N %c %m %G'` shows them)",
    ),
    (r"dependency problem", "--after must name jobs that SLURM still knows (`squeue` lists them)"),
    (
        r"[Aa]ccess/permission denied|not permitted|QOS policy|violates accounting",
        "the account's limits must allow the job (`sacctmgr show associations` shows them); request less, or "
        "ask the cluster's administrators",
    ),
    (r"unrecognized option|Invalid --|invalid option", "submit.options must hold options that sbatch knows"),
    (
        _UNREACHABLE.pattern,
        "SLURM's controller must respond (check with `scontrol ping`); try again, or ask the cluster's "
        "administrators",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobInfo:
    """What the controller reports of a job.

    Attributes:
        state: such as PENDING.
        reason: why it waits or has ended; empty where there is none.
        exit_code: of the batch script as a shell reports it.
        nodes: of the job, compressed as SLURM writes them.
    """

    state: str
    reason: str
    exit_code: int
    nodes: str


def submit_script(script: Path, *arguments: str, dependency: str | None = None) -> str:
    """Hand a script to sbatch; return the id of the job.

    Raises:
        ClusterError: it was refused, or the controller does not respond.
    """
    options = [f"--dependency={dependency}"] if dependency else []
    answer = _run(
        ["sbatch", "--parsable", *options, str(script), *arguments],
        what="take the job",
        script=script.read_text(encoding="utf-8", errors="replace"),
    )
    # Federations add their cluster's name: 123;name.
    return answer.strip().partition(";")[0]


def show_job(job: str) -> JobInfo | None:
    """Return what the controller knows of a job; None once it has forgotten it, minutes after the end.

    Raises:
        ClusterError: the controller does not respond.
    """
    try:
        text = _run(["scontrol", "--oneliner", "show", "job", job], what="show the job")
    except _ForgottenJobError:
        return None
    # SLURM shows one line for a job of an array that waits with others, and several for a whole array.
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
        ClusterError: the controller does not respond.
    """
    _run(["scancel", "--signal=TERM", job], what="signal the job")


def cancel_job(job: str) -> None:
    """End a job in whatever state it is.

    Raises:
        ClusterError: the controller does not respond, or forbids it.
    """
    _run(["scancel", job], what="cancel the job")


def start_again(job: str) -> bool:
    """Put a job that has ended back into the queue; return False if SLURM no longer knows it.

    Raises:
        ClusterError: the controller does not respond.
    """
    try:
        _run(["scontrol", "requeue", job], what="start the job again")
    except _ForgottenJobError:
        return False
    return True


class _ForgottenJobError(ClusterError):
    """The controller no longer knows the job."""


def _run(command: Sequence[str], *, what: str, script: str = "") -> str:
    try:
        finished = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            env=environment_for(script),
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise ClusterError(
            f"SLURM must be installed where jobs are submitted, but there is no {command[0]}; log in to the "
            "cluster, or choose another --target"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise UnreachableClusterError(
            f"SLURM's controller must respond within {LIMIT_SECONDS:.0f} s, but {command[0]} got no "
            "response; try again, or ask the cluster's administrators (check with `scontrol ping`)"
        ) from error
    if finished.returncode == 0:
        return finished.stdout
    if _FORGOTTEN in finished.stderr:
        raise _ForgottenJobError(f"SLURM no longer knows the job {command[-1]}")
    kind = UnreachableClusterError if _UNREACHABLE.search(finished.stderr) else ClusterError
    raise kind(refusal(finished.stderr, what=what))


def environment_for(script: str) -> dict[str, str]:
    """Return the environment without the job that this command runs in, and without what a script decides.

    Args:
        script: for sbatch; empty for other commands.
    """
    given = {
        _OTHER_NAMES.get(option, f"SBATCH_{option.upper().replace('-', '_')}")
        for option in _GIVEN.findall(script)
    }
    return {
        name: value
        for name, value in os.environ.items()
        if (not name.startswith(_OF_A_JOB) or name in _OF_THE_CLUSTER) and name not in {*given, *_NEVER_OPEN}
    }


def refusal(text: str, *, what: str) -> str:
    """Return what one of SLURM's commands has reported as one message, with the cure where it is known."""
    lines = [re.sub(r"^\w+: (error: )?", "", line).strip() for line in text.splitlines()]
    said = "; ".join(line for line in lines if line and not line.startswith("Try ")) or "no reason given"
    cure = next((cure for pattern, cure in _CURES if re.search(pattern, said)), None)
    return f"SLURM does not {what}: {said}" + (f"; {cure}" if cure else "")
