"""What SLURM's commands say where they refuse, as messages that users can act on."""

import re

# What SLURM says, and what to do about it. The first that matches holds.
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
        "the account's limits must allow the job (`sacctmgr show associations` shows them); ask for less, or "
        "ask the cluster's administrators",
    ),
    (r"unrecognized option|Invalid --|invalid option", "submit.options must hold options that sbatch knows"),
    (
        r"Unable to contact slurm controller|Connection refused|connect failure|Unable to establish|"
        r"Socket timed out",
        "SLURM's controller must answer (`scontrol ping` asks it); try again, or ask the cluster's "
        "administrators",
    ),
)


def refusal(text: str, *, what: str) -> str:
    """Write what one of SLURM's commands has said as one message.

    Args:
        text: from its standard error.
        what: was asked for, such as `take the job`.
    """
    lines = [re.sub(r"^\w+: (error: )?", "", line).strip() for line in text.splitlines()]
    said = "; ".join(line for line in lines if line and not line.startswith("Try ")) or "no reason given"
    cure = next((cure for pattern, cure in _CURES if re.search(pattern, said)), None)
    return f"SLURM does not {what}: {said}" + (f"; {cure}" if cure else "")
