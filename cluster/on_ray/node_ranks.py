"""The ranks of one machine under Ray, as processes of their own.

They are subprocesses of a Ray worker rather than the worker itself: each runs the same command that
`megaponder train` runs elsewhere, its exit code and signals are its own, and its process group of torch, its
CUDA context and its Python state end with it, so that a restart begins from a clean state.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.job_files import rank_log
from cluster.job_spec import JobSpec
from pipeline.ranks.environment import START_TIMEOUT_VARIABLE
from pipeline.ranks.final_error import FINAL_ERROR_NAME, FINAL_ERROR_VARIABLE
from pipeline.ranks.process import RankProcesses, rank_variables


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """Where ranks find each other, and which of them are on this machine.

    Attributes:
        address, port: of the first rank.
        node: number of this machine, from 0.
    """

    address: str
    port: int
    node: int


def start_node_ranks(
    job: JobSpec,
    attempt_folder: Path,
    rendezvous: Rendezvous | None,
    *,
    stop_timeout_seconds: float = 0.0,
    failure_timeout_seconds: float = 0.0,
) -> RankProcesses:
    """Start the processes of one machine.

    Args:
        job: whose command they run.
        attempt_folder: for a log file of each, and for what a rank leaves that fails for good.
        rendezvous: None for a job of kind `driver`, whose one process is no rank.
        stop_timeout_seconds, failure_timeout_seconds: see `RankProcesses`.
    """
    ranks = RankProcesses(
        stop_timeout_seconds=stop_timeout_seconds, failure_timeout_seconds=failure_timeout_seconds
    )
    num_processes = 1 if rendezvous is None else job.resources.ranks_per_node
    first_rank = 0 if rendezvous is None else rendezvous.node * num_processes
    try:
        for local_rank in range(num_processes):
            ranks.start(
                _with_setup(job),
                {
                    **_variables(job, rendezvous, local_rank),
                    FINAL_ERROR_VARIABLE: str(attempt_folder / FINAL_ERROR_NAME),
                },
                log=rank_log(attempt_folder, first_rank + local_rank),
                working_directory=job.working_directory,
            )
    except BaseException:
        ranks.kill()
        raise
    return ranks


def _with_setup(job: JobSpec) -> tuple[str, ...]:
    if not job.setup:
        return job.command
    return ("bash", "-c", "\n".join(["set -e", *job.setup, 'exec "$@"']), "setup", *job.command)


def _variables(job: JobSpec, rendezvous: Rendezvous | None, local_rank: int) -> Mapping[str, str]:
    # Ray gives its workers as many threads as the whole worker has CPUs; a rank has its share.
    own = {"OMP_NUM_THREADS": str(job.resources.cpus_per_rank), **dict(job.environment)}
    if job.resources.gpus_per_node == 0:
        own.setdefault("CUDA_VISIBLE_DEVICES", "")
    if rendezvous is None:
        return own
    return {
        **own,
        **rank_variables(
            rank=rendezvous.node * job.resources.ranks_per_node + local_rank,
            local_rank=local_rank,
            world_size=job.resources.num_ranks,
            local_world_size=job.resources.ranks_per_node,
            address=rendezvous.address,
            port=rendezvous.port,
        ),
        START_TIMEOUT_VARIABLE: str(job.start_timeout_seconds),
    }
