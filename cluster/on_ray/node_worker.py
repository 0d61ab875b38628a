"""What Ray Train runs on every machine: its ranks, until all machines agree on how they ended."""

import signal
import socket
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.collective
import ray.util

from cluster.job_spec import JobSpec
from cluster.on_ray.job_status import NodeReport, Orders, Verdict
from cluster.on_ray.node_ranks import NodeRanks, Rendezvous
from pipeline.shared.ports import free_port

REPORT_SECONDS = 1.0
_POLL_SECONDS = 0.2
# For the ranks of this machine to leave after another one has failed.
FAILURE_SECONDS = 10.0
# Of the time that Ray gives a job to end, for the driver to write down how it ended.
_MARGIN_SECONDS = 10.0


class RestartError(Exception):
    """The ranks have left to be started again. Ray Train counts and bounds these."""


def run_node(settings: dict[str, Any]) -> int:
    """Run the ranks of this machine.

    Args:
        settings: `job`, a `JobSpec`, and `board`, the handle of a `cluster.on_ray.job_status.Board`.

    Returns:
        the exit code of all ranks, with which the job is over.

    Raises:
        RestartError: another start can go on from the last checkpoint.
    """
    job, board = settings["job"], settings["board"]
    attempt_folder, rendezvous = _meet(board)
    ranks = NodeRanks(job, attempt_folder, rendezvous)
    try:
        ranks.start()
        verdict, stops = _Node(job, board, ranks, rendezvous.node).watch()
    finally:
        ranks.kill()
    if verdict.restarts and not stops:
        raise RestartError(verdict.reason)
    return verdict.exit_code


def _meet(board: Any) -> tuple[Path, Rendezvous]:
    """Let the first machine choose where ranks meet, and tell the others."""
    node = ray.train.get_context().get_world_rank()
    chosen = None
    if node == 0:
        folder = ray.get(board.open_attempt.remote())
        chosen = (str(folder), _own_address(), free_port())
    folder, address, port = ray.train.collective.broadcast_from_rank_zero(chosen)
    return Path(folder), Rendezvous(address=address, port=port, node=node)


def _own_address() -> str:
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


class _Node:
    """Between the ranks of a machine and the board."""

    def __init__(self, job: JobSpec, board: Any, ranks: NodeRanks, node: int) -> None:
        self._job = job
        self._board = board
        self._ranks = ranks
        self._node = node
        self._deadline = float("inf")
        self._was_told = False
        self._staying: frozenset[int] = frozenset()

    def watch(self) -> tuple[Verdict, bool]:
        """Report until the verdict; return it, and whether the job is to stop.

        The ranks of one machine may leave because those of another were told to, before this one hears it.
        """
        reported: tuple[int | None, ...] = ()
        next_report = 0.0
        while True:
            codes = self._codes()
            if codes != reported or time.monotonic() >= next_report:
                orders = self._report(codes)
                reported, next_report = codes, time.monotonic() + REPORT_SECONDS
                if orders.verdict is not None and None not in codes:
                    return orders.verdict, orders.stops
                self._follow(orders)
            if time.monotonic() > self._deadline:
                self._kill_those_staying(codes)
            time.sleep(_POLL_SECONDS)

    def _codes(self) -> tuple[int | None, ...]:
        """Exit codes, without those of ranks that only waited for one that has failed: they are no cause."""
        return tuple(
            0 if code is not None and index in self._staying else code
            for index, code in enumerate(self._ranks.codes)
        )

    def _kill_those_staying(self, codes: tuple[int | None, ...]) -> None:
        if not self._was_told:
            self._staying |= {index for index, code in enumerate(codes) if code is None}
        self._ranks.tell(signal.SIGKILL)

    def _report(self, codes: tuple[int | None, ...]) -> Orders:
        report = NodeReport(node=self._node, host=socket.gethostname(), codes=codes)
        orders: Orders = ray.get(self._board.report.remote(report))
        return orders

    def _follow(self, orders: Orders) -> None:
        if orders.stops and not self._was_told:
            self._was_told = True
            self._ranks.tell(signal.SIGTERM)
            seconds = max(self._job.requeue.signal_lead_seconds - _MARGIN_SECONDS, 1.0)
            self._deadline = min(self._deadline, time.monotonic() + seconds)
        if orders.has_failure and not self._was_told:
            self._deadline = min(self._deadline, time.monotonic() + FAILURE_SECONDS)
