"""The ranks of one machine, as processes of their own.

They are subprocesses of a Ray worker rather than the worker itself: each runs the very command that
`megaponder train` runs elsewhere, its exit code and signals are its own, and its process group of torch, its
CUDA context and its Python state end with it, so that a restart begins from nothing.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.job_files import rank_log
from cluster.job_spec import JobSpec
from pipeline.ranks.environment import START_TIMEOUT_VARIABLE
from pipeline.ranks.process import code_of, die_with_parent


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


class NodeRanks:
    """Processes of one machine; must be started and asked by one thread that outlives them.

    Args:
        job: whose command they run.
        attempt_folder: for a log file of each.
        rendezvous: None for a job of kind `driver`, whose one process is no rank.
    """

    def __init__(self, job: JobSpec, attempt_folder: Path, rendezvous: Rendezvous | None) -> None:
        self._job = job
        self._folder = attempt_folder
        self._rendezvous = rendezvous
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start all of them."""
        for local_rank in range(self._job.resources.ranks_per_node if self._rendezvous else 1):
            rank = self._first_rank + local_rank
            with rank_log(self._folder, rank).open("wb") as log:
                self._processes.append(
                    subprocess.Popen(
                        _with_setup(self._job),
                        env={**os.environ, **_variables(self._job, self._rendezvous, local_rank)},
                        cwd=self._job.working_directory,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        process_group=0,
                        preexec_fn=die_with_parent(os.getpid()),
                    )
                )

    @property
    def codes(self) -> tuple[int | None, ...]:
        """Exit code of each as a shell tells it, None while it runs."""
        return tuple(code_of(process) for process in self._processes)

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to those that run."""
        for process, code in zip(self._processes, self.codes, strict=True):
            if code is None:
                os.kill(process.pid, number)

    def kill(self) -> None:
        """Kill the process group of each, helpers included, and reap it."""
        for process in self._processes:
            # None is reaped yet, so that its number cannot belong to another process.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes = []

    @property
    def _first_rank(self) -> int:
        return self._rendezvous.node * self._job.resources.ranks_per_node if self._rendezvous else 0


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
        "RANK": str(rendezvous.node * job.resources.ranks_per_node + local_rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(job.resources.num_ranks),
        "LOCAL_WORLD_SIZE": str(job.resources.ranks_per_node),
        "MASTER_ADDR": rendezvous.address,
        "MASTER_PORT": str(rendezvous.port),
        START_TIMEOUT_VARIABLE: str(job.start_timeout_seconds),
    }
