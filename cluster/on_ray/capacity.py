"""What a job requests of a cluster, what the cluster has, and what is missing."""

from collections.abc import Mapping, Sequence
from operator import itemgetter

from cluster.job_spec import Resources

_BYTES = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def node_resources(resources: Resources) -> dict[str, float]:
    """Return what one machine must have free, by Ray's names: numbers of CPU and GPU, memory in bytes."""
    needed = {"CPU": float(resources.ranks_per_node * resources.cpus_per_rank)}
    if resources.gpus_per_node:
        needed["GPU"] = float(resources.gpus_per_node)
    if resources.memory_per_node is not None:
        needed["memory"] = float(int(resources.memory_per_node[:-1]) * _BYTES[resources.memory_per_node[-1]])
    return needed


def render_missing_capacity(
    requested: Mapping[str, float], num_nodes: int, machines: Sequence[tuple[str, Mapping[str, float]]]
) -> str:
    """Describe what is missing.

    Args:
        requested: of each machine.
        num_nodes: machines that must have it.
        machines: name and all resources of every live machine, used or not.

    Returns:
        one line for the request, one for each machine, one for the cure.
    """
    fitting = [
        name for name, has in machines if all(has.get(kind, 0.0) >= requested[kind] for kind in requested)
    ]
    lines = [f"requested: {num_nodes} machine(s), each with {_listed(requested, requested)}"]
    lines += [
        f"available: {name} with {_listed(has, requested)}"
        for name, has in sorted(machines, key=itemgetter(0))
    ]
    if len(fitting) >= num_nodes:
        lines.append(
            "the machines are large enough, but other jobs use them: wait, see `ray status` on the head"
        )
    else:
        lines.append(
            f"{len(fitting)} of {num_nodes} machine(s) are large enough: add machines, or request less "
            "(submit.nodes, submit.gpus_per_node, submit.cpus_per_rank, submit.memory_per_node)"
        )
    return "\n".join(lines)


def _listed(has: Mapping[str, float], kinds: Mapping[str, float]) -> str:
    return ", ".join(
        f"{has.get(kind, 0.0) / 2**30:.1f} GiB" if kind == "memory" else f"{has.get(kind, 0.0):g} {kind}"
        for kind in kinds
    )
