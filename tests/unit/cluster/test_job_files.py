"""What every job keeps in its folder."""

from pathlib import Path

import pytest

from cluster.job_files import (
    JobEnd,
    forget_end,
    load_end,
    newest_rank_logs,
    next_attempt,
    num_attempts,
    num_requeues,
    rank_log,
    save_end,
)
from cluster.job_record import JobState
from pipeline.shared.errors import ClusterError


def test_the_newest_attempt_and_its_ranks_are_found_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    assert (newest_rank_logs(tmp_path), num_attempts(tmp_path), num_requeues(tmp_path)) == ((), 0, 0)
    assert next_attempt(tmp_path).name == "attempt-001"
    assert (newest_rank_logs(tmp_path), num_attempts(tmp_path), num_requeues(tmp_path)) == ((), 1, 0)
    for _ in range(999):
        newest = next_attempt(tmp_path)
    assert newest.name == "attempt-1000"
    logs = [rank_log(newest, rank) for rank in (0, 1, 99999, 100000)]
    for log in reversed(logs):
        log.touch()
    (newest / "codes").mkdir()
    assert [log.name for log in newest_rank_logs(tmp_path)] == [
        "rank-00000.log",
        "rank-00001.log",
        "rank-99999.log",
        "rank-100000.log",
    ]
    assert num_requeues(tmp_path) == 999


@pytest.mark.parametrize(
    ("code", "cancelled", "state"),
    [
        (0, False, JobState.DONE),
        (0, True, JobState.DONE),
        (75, True, JobState.CANCELLED),
        (75, False, JobState.FAILED),
    ],
)
def test_the_end_is_kept_until_it_is_forgotten(
    tmp_path: Path, code: int, cancelled: bool, state: JobState
) -> None:
    end = JobEnd(exit_code=code, reason='rank "3"\nof 4', cancelled=cancelled, nodes=("a", "b"))
    assert load_end(tmp_path) is None
    save_end(tmp_path, end)
    assert load_end(tmp_path) == end
    assert end.state == state
    forget_end(tmp_path)
    assert load_end(tmp_path) is None


def test_an_end_that_cannot_be_read_is_reported(tmp_path: Path) -> None:
    (tmp_path / "end.json").write_text("9 rank 3")
    with pytest.raises(ClusterError, match=r"end\.json"):
        load_end(tmp_path)
