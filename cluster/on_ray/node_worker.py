"""What Ray Train runs on every machine: its ranks, until the verdict on how all of them ended."""

import signal
import socket
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.collective
import ray.util

from cluster.on_ray.job_status import NodeReport, Orders, Verdict
from cluster.on_ray.node_ranks import Rendezvous, start_node_ranks
from pipeline.ranks.process import RankProcesses
from pipeline.shared.ports import free_port

REPORT_SECONDS = 1.0
_POLL_SECONDS = 0.2
# Of the driver, whose machine may be lost without a word.
_RESPONSE_SECONDS = 120.0
# For the ranks of this machine to leave after another one has failed.
FAILURE_SECONDS = 10.0
# Of the time that Ray gives a job to stop, reserved for the driver to write how the job ended.
_MARGIN_SECONDS = 10.0


class RestartError(Exception):
    """The ranks have left in order to restart. Ray Train counts and bounds these."""


def run_node(settings: dict[str, Any]) -> int:
    """Run the ranks of this machine.

    Args:
        settings: `job`, a `JobSpec`, and `tracker`, the handle of a `JobStatusTracker`.

    Returns:
        the exit code of the job, which has ended.

    Raises:
        RestartError: another attempt can resume from the last checkpoint.
    """
    job, tracker = settings["job"], settings["tracker"]
    attempt_folder, rendezvous = _meet(tracker)
    ranks = start_node_ranks(
        job,
        attempt_folder,
        rendezvous,
        stop_timeout_seconds=max(job.requeue.signal_lead_seconds - _MARGIN_SECONDS, 1.0),
        failure_timeout_seconds=FAILURE_SECONDS,
    )
    try:
        verdict, stops = _watch(tracker, ranks, rendezvous.node)
    finally:
        ranks.kill()
    if verdict.restarts and not stops:
        raise RestartError(verdict.reason)
    return verdict.exit_code


def _meet(tracker: Any) -> tuple[Path, Rendezvous]:
    """Let the first machine choose where the ranks meet, and send that to the others."""
    node = ray.train.get_context().get_world_rank()
    chosen = None
    if node == 0:
        folder = ray.get(tracker.open_attempt.remote(), timeout=_RESPONSE_SECONDS)
        # On one machine, where no other one can connect.
        address = _own_address() if ray.train.get_context().get_world_size() > 1 else "127.0.0.1"
        chosen = (str(folder), address, free_port())
    folder, address, port = ray.train.collective.broadcast_from_rank_zero(chosen)
    return Path(folder), Rendezvous(address=address, port=port, node=node)


def _own_address() -> str:
    address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


def _watch(tracker: Any, ranks: RankProcesses, node: int) -> tuple[Verdict, bool]:
    """Report the ranks of this machine until there is a verdict; return it, and whether the job is to stop.

    The ranks of one machine may leave because those of another have received a stop signal, before this one
    knows of it.
    """
    reported: tuple[int | None, ...] = ()
    next_report = 0.0
    while True:
        codes = ranks.codes
        if codes != reported or time.monotonic() >= next_report:
            report = NodeReport(node=node, host=socket.gethostname(), codes=codes)
            orders: Orders = ray.get(tracker.report.remote(report), timeout=_RESPONSE_SECONDS)
            reported, next_report = codes, time.monotonic() + REPORT_SECONDS
            if orders.verdict is not None and None not in codes:
                return orders.verdict, orders.stops
            if orders.stops:
                ranks.stop(signal.SIGTERM)
            if orders.failure is not None:
                ranks.note_failure(orders.failure)
        ranks.kill_overdue()
        time.sleep(_POLL_SECONDS)
