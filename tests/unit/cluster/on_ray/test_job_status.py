"""How a job has ended, from what its machines tell."""

from pathlib import Path

import pytest

from cluster.on_ray.job_status import VERDICT_SECONDS, JobStatusTracker, NodeReport, Orders, Verdict
from pipeline.ranks.final_error import FINAL_ERROR_NAME


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(tmp_path: Path, clock: Clock) -> JobStatusTracker:
    """Of two machines with two ranks each, which have started."""
    tracker = JobStatusTracker(tmp_path / "logs", num_nodes=2, clock=clock)
    tracker.open_attempt()
    return tracker


def report(tracker: JobStatusTracker, node: int, *codes: int | None) -> Orders:
    return tracker.report(NodeReport(node=node, host=f"host{node}", codes=codes))


def test_a_job_has_ended_when_every_rank_of_every_machine_has(tracker: JobStatusTracker) -> None:
    assert report(tracker, 0, 0, 0).verdict is None
    assert report(tracker, 1, 0, None).verdict is None
    verdict = report(tracker, 1, 0, 0).verdict
    assert verdict is not None
    assert (verdict.exit_code, verdict.reason, verdict.restarts) == (0, "", False)
    assert report(tracker, 0, 0, 0).verdict == verdict


@pytest.mark.parametrize(
    ("first", "second", "code", "rank", "restarts"),
    [
        ((75, 75), (75, 75), 75, 0, True),
        ((93, 93), (93, 93), 93, 0, False),
        ((1, 1), (1, 9), 1, 0, False),
        ((75, 75), (75, 9), 9, 3, False),
        ((1, 1), (137, 1), 137, 2, False),
        ((0, 0), (0, 2), 2, 3, False),
    ],
)
def test_the_rank_that_was_the_cause_gives_the_code(
    tracker: JobStatusTracker,
    first: tuple[int, int],
    second: tuple[int, int],
    code: int,
    rank: int,
    restarts: bool,
) -> None:
    report(tracker, 0, *first)
    verdict = report(tracker, 1, *second).verdict
    assert verdict is not None
    assert (verdict.exit_code, verdict.restarts) == (code, restarts)
    assert verdict.reason == f"rank {rank} on host{rank // 2} ended with exit code {code}"


def test_an_error_that_no_restart_cures_gives_the_code_whatever_it_does_to_the_others(
    tracker: JobStatusTracker,
) -> None:
    attempt = tracker.overview().attempt_folder
    assert attempt is not None
    (attempt / FINAL_ERROR_NAME).write_text("93\nrank 2 has no memory\n")
    report(tracker, 0, 134, 75)
    verdict = report(tracker, 1, 0, 134).verdict
    assert verdict == Verdict(exit_code=93, reason="rank 2 has no memory")
    tracker.open_attempt()
    report(tracker, 0, 75, 75)
    verdict = report(tracker, 1, 75, 75).verdict
    assert verdict is not None
    assert verdict.exit_code == 75


def test_a_failure_reaches_the_other_machines_at_once(tracker: JobStatusTracker) -> None:
    assert report(tracker, 1, None, None).failure is None
    assert report(tracker, 0, None, 9).failure == 9
    assert report(tracker, 1, None, None).failure == 9


def test_the_wait_for_a_lost_machine_is_bounded(tracker: JobStatusTracker, clock: Clock) -> None:
    report(tracker, 1, None, None)
    assert report(tracker, 0, 1, 1).verdict is None
    clock.seconds = VERDICT_SECONDS + 1
    verdict = report(tracker, 0, 1, 1).verdict
    assert verdict is not None
    assert verdict.exit_code == 1


def test_a_stop_reaches_every_machine(tracker: JobStatusTracker) -> None:
    assert not report(tracker, 0, None, None).stops
    tracker.stop()
    assert report(tracker, 0, None, None).stops
    assert report(tracker, 1, None, None).stops


def test_another_attempt_starts_clean_with_its_own_logs(tracker: JobStatusTracker, clock: Clock) -> None:
    report(tracker, 0, 75, 75)
    report(tracker, 1, 75, 75)
    before = tracker.overview()
    assert before.hosts == ("host0", "host1")
    folder = tracker.open_attempt()
    after = tracker.overview()
    assert folder != before.attempt_folder
    assert folder == after.attempt_folder
    assert folder.is_dir()
    assert (before.num_attempts, after.num_attempts) == (1, 2)
    assert after.verdict is None
    orders = report(tracker, 0, None, None)
    assert (orders.failure, orders.verdict) == (None, None)
    assert tracker.overview().alive_ranks == 2
