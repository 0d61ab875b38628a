"""A job of one process next to its driver, which itself requests more of the cluster: data preparation."""

import os
import socket
from dataclasses import replace

from cluster.job_spec import JobSpec
from cluster.on_ray.job_file import RAY_ADDRESS_WORD
from cluster.on_ray.job_status import JobStatusTracker, NodeReport, Overview, Verdict
from cluster.on_ray.node_ranks import start_node_ranks
from pipeline.ranks.process import RankProcesses


class SingleProcessJob:
    """The counterpart of `cluster.on_ray.worker_group.WorkerGroup` with one process on this machine.

    Ray stops a job by signalling the driver's children too, so the process receives the signal from Ray.

    Args:
        job: of kind `driver`; in its command `{ray_address}` stands for the address of the head.
    """

    def __init__(self, job: JobSpec) -> None:
        address = os.environ["RAY_ADDRESS"]
        command = tuple(word.replace(RAY_ADDRESS_WORD, address) for word in job.command)
        self._job = replace(job, command=command)
        self._tracker = JobStatusTracker(job.log_folder, num_nodes=1)
        self._is_stopping = False
        self._process: RankProcesses | None = None

    def start(self) -> None:
        self._process = start_node_ranks(self._job, self._tracker.open_attempt(), None)

    def overview(self) -> Overview:
        """Return the state of the process."""
        codes = self._process.codes if self._process is not None else ()
        self._tracker.report(NodeReport(node=0, host=socket.gethostname(), codes=codes))
        return self._tracker.overview()

    def stop(self) -> None:
        """Do not restart it."""
        self._is_stopping = True

    @property
    def ending(self) -> Verdict | None:
        """How it has ended; None while it has not. Restarts it where another attempt can help."""
        seen = self.overview()
        if seen.verdict is None or self._process is None:
            return None
        self._process.kill()
        self._process = None
        is_bounded = seen.num_attempts <= self._job.requeue.max_requeues
        if seen.verdict.restarts and is_bounded and not self._is_stopping:
            self.start()
            return None
        return seen.verdict
