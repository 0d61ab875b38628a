from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from cluster.job_record import JobRecord, JobState, JobStatus
from cluster.job_spec import JobSpec
from cluster.wait import wait_for
from pipeline.shared.errors import ClusterError, UnreachableClusterError

QUEUED = JobStatus(state=JobState.QUEUED, reason="Resources")
RUNNING = JobStatus(state=JobState.RUNNING)
DONE = JobStatus(state=JobState.DONE, exit_code=0)
TOLD_TO_STOP = JobStatus(state=JobState.FAILED, exit_code=75)
LOST = JobStatus(state=JobState.UNKNOWN)


class PlannedTarget:
    """Jobs with a given sequence of states; the last one stays. None: the target does not respond."""

    def __init__(self, **plans: list[JobStatus | None]) -> None:
        self._plans = {name: self._states(plan) for name, plan in plans.items()}
        self.cancelled: list[str] = []

    def _states(self, plan: list[JobStatus | None]) -> Iterator[JobStatus | None]:
        yield from plan
        while True:
            yield plan[-1]

    def render(self, spec: JobSpec) -> str:
        raise AssertionError("nothing is to be rendered")

    def submit(self, spec: JobSpec) -> tuple[JobRecord, ...]:
        raise AssertionError("nothing is to be submitted")

    def status(self, record: JobRecord) -> JobStatus:
        status = next(self._plans[record.handle])
        if status is None:
            raise UnreachableClusterError("the controller is away")
        return status

    def logs(self, record: JobRecord) -> tuple[Path, ...]:
        return ()

    def cancel(self, record: JobRecord) -> None:
        self.cancelled.append(record.handle)

    def requeue(self, record: JobRecord) -> JobRecord:
        raise AssertionError("nothing is to start again")


def record(handle: str) -> JobRecord:
    return JobRecord(
        target="slurm",
        handle=handle,
        name="tiny",
        run_folder=Path("/runs/tiny"),
        job_folder=Path("/runs/tiny/jobs/1"),
        submitted_at=datetime(2026, 1, 1, tzinfo=UTC),
        command=("true",),
    )


wait_briefly = partial(wait_for, poll_seconds=0.01)


def test_the_code_is_that_of_the_first_job_that_failed() -> None:
    target = PlannedTarget(a=[QUEUED, RUNNING, DONE], b=[RUNNING, TOLD_TO_STOP], c=[LOST])
    records = [record("a"), record("b"), record("c")]
    assert wait_briefly(target, records, start_limit_seconds=None, last_counts=False) == 75


def test_the_last_job_of_a_chain_decides() -> None:
    target = PlannedTarget(a=[TOLD_TO_STOP], b=[RUNNING, DONE])
    assert wait_briefly(target, [record("a"), record("b")], start_limit_seconds=None, last_counts=True) == 0


def test_a_job_that_does_not_start_in_time_is_cancelled() -> None:
    target = PlannedTarget(a=[QUEUED], b=[QUEUED])
    with pytest.raises(ClusterError, match=r"slurm:a.* 0 s.*--start-limit.*Resources"):
        wait_briefly(target, [record("a"), record("b")], start_limit_seconds=0.05, last_counts=True)
    assert target.cancelled == ["b", "a"]


def test_a_job_that_has_started_once_may_wait_again() -> None:
    target = PlannedTarget(a=[RUNNING, *[QUEUED] * 20, DONE])
    assert wait_briefly(target, [record("a")], start_limit_seconds=0.02, last_counts=False) == 0


AWAY = JobStatus(state=JobState.UNKNOWN, reason="no Ray", is_unreachable=True)


@pytest.mark.parametrize("away", [None, AWAY])
def test_a_target_that_is_away_for_a_while_is_waited_for(
    away: JobStatus | None, caplog: pytest.LogCaptureFixture
) -> None:
    target = PlannedTarget(a=[RUNNING, away, away, RUNNING, away, DONE], b=[RUNNING])
    assert wait_briefly(target, [record("a")], start_limit_seconds=None, last_counts=False) == 0
    # Once for each absence, and once for each return.
    assert len([each for each in caplog.records if each.levelname == "WARNING"]) == 4


@pytest.mark.parametrize("away", [None, AWAY])
def test_a_target_that_stays_away_ends_the_wait_and_cancels_nothing(away: JobStatus | None) -> None:
    target = PlannedTarget(a=[RUNNING, away])
    with pytest.raises(ClusterError, match=r"submit\.unreachable_timeout_seconds"):
        wait_briefly(
            target,
            [record("a")],
            start_limit_seconds=0.01,
            last_counts=False,
            unreachable_limit_seconds=0.05,
        )
    assert target.cancelled == []
