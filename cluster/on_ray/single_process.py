"""A job of one process beside its driver, that asks the cluster for more by itself: data preparation."""

import os
import socket
from dataclasses import replace

from cluster.job_spec import JobSpec
from cluster.on_ray.job_file import RAY_ADDRESS_WORD
from cluster.on_ray.job_status import JobStatusTracker, NodeReport, Overview, Verdict
from cluster.on_ray.node_ranks import start_node_ranks
from pipeline.ranks.process import RankProcesses


class SingleProcessJob:
    """Like `cluster.on_ray.worker_group.WorkerGroup`, with one process on this machine.

    Ray's way to stop a job signals the driver's children too: the process is told by Ray itself.

    Args:
        job: of kind `driver`; in its command `{ray_address}` stands for the address of the head.
    """

    def __init__(self, job: JobSpec) -> None:
        address = os.environ["RAY_ADDRESS"]
        command = tuple(word.replace(RAY_ADDRESS_WORD, address) for word in job.command)
        self._job = replace(job, command=command)
        self._tracker = JobStatusTracker(job.log_folder, num_nodes=1)
        self._was_told = False
        self._process: RankProcesses | None = None

    def start(self) -> None:
        """Start the process."""
        self._process = start_node_ranks(self._job, self._tracker.open_attempt(), None)

    def overview(self) -> Overview:
        """Return how the process is."""
        codes = self._process.codes if self._process is not None else ()
        self._tracker.report(NodeReport(node=0, host=socket.gethostname(), codes=codes))
        return self._tracker.overview()

    def stop(self) -> None:
        """Start it no more."""
        self._was_told = True

    @property
    def ending(self) -> Verdict | None:
        """How it has ended; None while it has not. Where another start helps, it is started again."""
        seen = self.overview()
        if seen.verdict is None or self._process is None:
            return None
        self._process.kill()
        self._process = None
        is_bounded = seen.num_attempts <= self._job.requeue.max_requeues
        if seen.verdict.restarts and is_bounded and not self._was_told:
            self.start()
            return None
        return seen.verdict
