"""What a job asks of a cluster, what the cluster has, and what is missing."""

from collections.abc import Mapping, Sequence
from operator import itemgetter

from cluster.job_spec import Resources

_BYTES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def node_resources(resources: Resources) -> dict[str, float]:
    """Return what one machine must have free, in Ray's words: CPU and GPU counted, memory in bytes."""
    asked = {"CPU": float(resources.ranks_per_node * resources.cpus_per_rank)}
    if resources.gpus_per_node:
        asked["GPU"] = float(resources.gpus_per_node)
    if resources.memory_per_node is not None:
        asked["memory"] = float(int(resources.memory_per_node[:-1]) * _BYTES[resources.memory_per_node[-1]])
    return asked


def render_missing_capacity(
    asked: Mapping[str, float], num_nodes: int, there: Sequence[tuple[str, Mapping[str, float]]]
) -> str:
    """Say what is missing.

    Args:
        asked: of each machine.
        num_nodes: machines that must have it.
        there: name and all resources of every live machine, used or not.

    Returns:
        one line for what is asked, one for each machine, one for the cure.
    """
    fitting = [name for name, has in there if all(has.get(kind, 0.0) >= asked[kind] for kind in asked)]
    lines = [f"asked: {num_nodes} machine(s), each with {_listed(asked, asked)}"]
    lines += [f"there: {name} with {_listed(has, asked)}" for name, has in sorted(there, key=itemgetter(0))]
    if len(fitting) >= num_nodes:
        lines.append("all would fit, but other jobs are there: wait for them, see `ray status` on the head")
    else:
        lines.append(
            f"{len(fitting)} of {num_nodes} machine(s) suffice: add machines, or ask for less "
            "(submit.nodes, submit.gpus_per_node, submit.cpus_per_rank, submit.memory_per_node)"
        )
    return "\n".join(lines)


def _listed(has: Mapping[str, float], kinds: Mapping[str, float]) -> str:
    return ", ".join(
        f"{has.get(kind, 0.0) / 2**30:.1f} GiB" if kind == "memory" else f"{has.get(kind, 0.0):g} {kind}"
        for kind in kinds
    )
