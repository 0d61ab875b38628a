"""The status of a job on Ray: what its machines report, and the orders they get in return.

One actor on the driver's machine; nothing here imports Ray.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cluster.job_files import next_attempt
from pipeline.ranks.final_error import FINAL_ERROR_NAME, read_final_error
from pipeline.ranks.process import first_failed
from pipeline.shared.exit_codes import ExitCode

# For machines to report how their ranks ended after one has failed; a lost machine never reports.
VERDICT_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """The state of the ranks of one machine.

    Attributes:
        node: its number.
        host: its name.
        codes: exit code of each rank, None while it runs.
    """

    node: int
    host: str
    codes: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How an attempt, or the whole job, has ended.

    Attributes:
        exit_code: of all ranks together.
        reason: which rank was the cause; empty where all succeeded.
    """

    exit_code: int
    reason: str

    @property
    def restarts(self) -> bool:
        """Whether another attempt can resume from the last checkpoint."""
        return self.exit_code == ExitCode.REQUEUE


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a machine must do.

    Attributes:
        stops: pass a stop signal on to the ranks.
        failure: exit code of a rank that has failed, on any machine; None while there is none.
        verdict: once the attempt has ended.
    """

    stops: bool
    failure: int | None
    verdict: Verdict | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What the driver shows and writes down.

    Attributes:
        attempt_folder: logs of the last attempt; None before the first.
        num_attempts: so far.
        hosts: of the machines, in order of the ranks.
        alive_ranks: how many run.
        silent_seconds: since any machine has reported, or since the job began.
        verdict: on the last attempt.
    """

    attempt_folder: Path | None
    num_attempts: int
    hosts: tuple[str, ...]
    alive_ranks: int
    silent_seconds: float
    verdict: Verdict | None


class JobStatusTracker:
    """Collects the reports of one attempt at a time and decides how it has ended.

    Args:
        log_folder: of the job.
        num_nodes: machines that report.
        clock: seconds, for tests.
    """

    def __init__(self, log_folder: Path, num_nodes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._log_folder = log_folder
        self._num_nodes = num_nodes
        self._clock = clock
        self._reports: dict[int, NodeReport] = {}
        self._attempt_folder: Path | None = None
        self._num_attempts = 0
        self._stops = False
        self._failed_at: float | None = None
        self._failure: int | None = None
        self._reported_at = clock()
        self._verdict: Verdict | None = None

    def open_attempt(self) -> Path:
        """Begin another attempt; return the folder for its logs."""
        self._reports.clear()
        self._failed_at = self._failure = self._verdict = None
        self._reported_at = self._clock()
        self._attempt_folder = next_attempt(self._log_folder)
        self._num_attempts += 1
        return self._attempt_folder

    def stop(self) -> None:
        """Order every machine to let its ranks save and leave."""
        self._stops = True

    def report(self, report: NodeReport) -> Orders:
        """Record a machine's report; return its orders."""
        self._reported_at = self._clock()
        self._reports[report.node] = report
        failed = first_failed(report.codes)
        if self._failed_at is None and failed is not None:
            self._failed_at, self._failure = self._clock(), report.codes[failed]
        if self._verdict is None and self._is_over():
            self._verdict = self._judge()
        return Orders(stops=self._stops, failure=self._failure, verdict=self._verdict)

    def overview(self) -> Overview:
        """Return the state of the job."""
        reports = self._in_order()
        return Overview(
            attempt_folder=self._attempt_folder,
            num_attempts=self._num_attempts,
            hosts=tuple(report.host for report in reports),
            alive_ranks=sum(report.codes.count(None) for report in reports),
            silent_seconds=self._clock() - self._reported_at,
            verdict=self._verdict,
        )

    def _is_over(self) -> bool:
        if len(self._reports) == self._num_nodes and not any(None in r.codes for r in self._reports.values()):
            return True
        return self._failed_at is not None and self._clock() - self._failed_at > VERDICT_SECONDS

    def _judge(self) -> Verdict:
        places = [
            (report, index, code) for report in self._in_order() for index, code in enumerate(report.codes)
        ]
        failed = first_failed([code for _, _, code in places])
        if failed is None:
            return Verdict(exit_code=ExitCode.DONE, reason="")
        assert self._attempt_folder is not None, "ranks belong to an attempt"
        noted = read_final_error(self._attempt_folder / FINAL_ERROR_NAME)
        if noted is not None:
            return Verdict(exit_code=noted.exit_code, reason=noted.reason)
        report, index, code = places[failed]
        assert code is not None, "a rank that has failed has ended"
        rank = report.node * len(report.codes) + index
        return Verdict(exit_code=code, reason=f"rank {rank} on {report.host} ended with exit code {code}")

    def _in_order(self) -> list[NodeReport]:
        return [self._reports[node] for node in sorted(self._reports)]
