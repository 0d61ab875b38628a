"""What a machine does with its ranks, with a tracker in this process instead of an actor of Ray."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.on_ray import node_worker
from cluster.on_ray.job_status import JobStatusTracker, NodeReport, Verdict
from pipeline.ranks.process import RankProcesses

READY_THEN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(sys.argv[2])))
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
"""


@pytest.fixture
def tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JobStatusTracker:
    tracker = JobStatusTracker(tmp_path / "logs", num_nodes=1)
    tracker.open_attempt()
    # An actor's method is called with `remote`, and its result fetched.
    monkeypatch.setattr(node_worker.ray, "get", lambda result, timeout: result)
    monkeypatch.setattr(node_worker, "REPORT_SECONDS", 0.05)
    return tracker


def watch(tracker: JobStatusTracker, ranks: RankProcesses) -> tuple[Verdict, bool]:
    actor: Any = SimpleNamespace(report=SimpleNamespace(remote=tracker.report))
    try:
        return node_worker._watch(actor, ranks, 0)
    finally:
        ranks.kill()


def start_waiting(ranks: RankProcesses, folder: Path, *codes: int) -> None:
    """Start a rank for each code, with which it leaves after a stop signal; wait until all are ready."""
    files = [folder / f"ready{index}" for index, _ in enumerate(codes)]
    for code, file in zip(codes, files, strict=True):
        ranks.start([sys.executable, "-c", READY_THEN, str(file), str(code)], {})
    end = time.monotonic() + 60
    while not all(file.exists() for file in files):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_stop_order_lets_the_ranks_save_and_leave(tracker: JobStatusTracker, tmp_path: Path) -> None:
    ranks = RankProcesses(stop_timeout_seconds=60.0)
    start_waiting(ranks, tmp_path, 75, 75)
    tracker.stop()
    verdict, stops = watch(tracker, ranks)
    assert (verdict.exit_code, verdict.restarts, stops) == (75, True, True)


def test_a_rank_that_waits_for_a_failed_one_is_killed_and_is_not_the_cause(
    tracker: JobStatusTracker, tmp_path: Path
) -> None:
    ranks = RankProcesses(stop_timeout_seconds=60.0, failure_timeout_seconds=0.0)
    start_waiting(ranks, tmp_path, 75)
    ranks.start([sys.executable, "-c", "raise SystemExit(9)"], {})
    verdict, stops = watch(tracker, ranks)
    assert (verdict.exit_code, verdict.restarts, stops) == (9, False, False)
    assert "rank 1" in verdict.reason


def test_a_failure_on_another_machine_ends_the_ranks_of_this_one(tmp_path: Path) -> None:
    tracker = JobStatusTracker(tmp_path / "logs", num_nodes=2)
    tracker.open_attempt()
    orders = tracker.report(NodeReport(node=1, host="other", codes=(3,)))
    assert orders.failure == 3
    ranks = RankProcesses(failure_timeout_seconds=0.0)
    start_waiting(ranks, tmp_path, 75)
    ranks.note_failure(orders.failure)
    try:
        assert ranks.kill_overdue() == [0]
    finally:
        ranks.kill()
