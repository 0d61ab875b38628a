"""What Ray runs for a submitted job: python -m cluster.on_ray.driver JOBFILE.

Starts the ranks, copies the first one's log, writes heartbeats and finally how the job ended; exits with the
job's exit code. SIGTERM, with which Ray stops a job, lets the ranks save and leave.
"""

import logging
import os
import signal
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from cluster.follow import LogTail
from cluster.job_files import JobEnd, newest_rank_logs, save_end
from cluster.job_spec import JobSpec
from cluster.on_ray.dependencies import wait_for_dependencies
from cluster.on_ray.heartbeat import Heartbeat, save_heartbeat
from cluster.on_ray.job_file import load_job
from cluster.on_ray.job_status import Overview, Verdict
from cluster.on_ray.single_process import SingleProcessJob
from pipeline.shared.errors import ClusterError
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.files import remove_temporaries

if TYPE_CHECKING:
    from cluster.on_ray.worker_group import WorkerGroup

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5


class Driver:
    """One job, from its start to its end.

    Args:
        job: as it was submitted.
    """

    def __init__(self, job: JobSpec) -> None:
        self._job = job
        self._stop_received = False
        self._seen: Overview | None = None
        self._beat_at = float("-inf")
        self._activity = ""
        self._tail = LogTail(sys.stdout.buffer)

    def run(self) -> int:
        """Run the job; return its exit code, which the job's folder then holds too."""
        try:
            ending = self._run()
        except ClusterError as error:
            ending = Verdict(exit_code=ExitCode.DO_NOT_REQUEUE, reason=str(error))
        except Exception as error:
            # Whatever it is, `megaponder jobs status` is to report it.
            logger.exception("the driver crashed")
            ending = Verdict(exit_code=ExitCode.CRASH, reason=f"the driver: {type(error).__name__}: {error}")
        if ending.exit_code != 0:
            logger.error("the job ends with exit code %d: %s", ending.exit_code, ending.reason)
        end = JobEnd(
            exit_code=ending.exit_code,
            reason=ending.reason,
            cancelled=self._stop_received and ending.exit_code != ExitCode.DONE,
            nodes=self._seen.hosts if self._seen else (),
        )
        save_end(self._job.job_folder, end)
        return ending.exit_code

    def _run(self) -> Verdict:
        self._install_handlers()
        self._beat("waiting for the jobs it depends on" if self._job.dependencies else "starting")
        if not wait_for_dependencies(self._job.dependencies, until=lambda: self._stop_received):
            return _STOPPED
        group = self._processes()
        # Again: Ray has installed its own handler, which ends the process at once.
        self._install_handlers()
        group.start()
        return self._watch(group)

    def _processes(self) -> "WorkerGroup | SingleProcessJob":
        if self._job.kind == "driver":
            return SingleProcessJob(self._job)
        # Imported here, because a job of one process needs neither.
        import ray

        from cluster.on_ray.worker_group import WorkerGroup

        ray.init(logging_level=logging.WARNING)
        return WorkerGroup(self._job)

    def _watch(self, group: "WorkerGroup | SingleProcessJob") -> Verdict:
        has_passed_it_on = False
        while (ending := group.ending) is None:
            self._seen = group.overview()
            if self._stop_received and self._seen.num_attempts == 0:
                # Nothing runs yet, and what Ray Train has requested is released with this process.
                return _STOPPED
            if self._stop_received and not has_passed_it_on:
                group.stop()
                has_passed_it_on = True
            self._copy_log()
            self._beat(_activity(self._seen, self._job))
            time.sleep(_POLL_SECONDS)
        self._seen = group.overview()
        self._copy_log()
        return ending

    def _install_handlers(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note_signal)

    def _note_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_received = True

    def _copy_log(self) -> None:
        self._tail.copy(next(iter(newest_rank_logs(self._job.log_folder)), None))

    def _beat(self, activity: str) -> None:
        now = time.monotonic()
        if activity == self._activity and now - self._beat_at < self._job.heartbeat_seconds:
            return
        self._beat_at, self._activity = now, activity
        seen = self._seen
        beat = Heartbeat(
            time=datetime.now(UTC),
            activity=activity,
            hosts=seen.hosts if seen else (),
            alive_ranks=seen.alive_ranks if seen else 0,
        )
        save_heartbeat(self._job.job_folder, beat)


_STOPPED = Verdict(exit_code=ExitCode.REQUEUE, reason="stopped before any rank had started")


def _activity(seen: Overview, job: JobSpec) -> str:
    if not seen.hosts:
        return f"waiting for free capacity on {job.resources.nodes} machine(s)"
    if seen.silent_seconds > job.heartbeat_seconds:
        return "a machine was lost; waiting for it to return, or for another one"
    num_ranks = 1 if job.kind == "driver" else job.resources.num_ranks
    return f"{seen.alive_ranks} of {num_ranks} process(es) alive"


def main() -> None:
    """Run the job that a file describes."""
    (file,) = sys.argv[1:]
    job = load_job(Path(file))
    remove_temporaries(job.job_folder)
    log = logging.FileHandler(job.log_folder / "driver.log")
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        handlers=[log, logging.StreamHandler()],
    )
    code = Driver(job).run()
    sys.stdout.flush()
    # Threads of Ray Train may wait forever; everything that matters has been written.
    if "ray" in sys.modules:
        import ray

        ray.shutdown()
    os._exit(code)


if __name__ == "__main__":
    main()
