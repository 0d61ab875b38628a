from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster.job_record import (
    JobRecord,
    find_record,
    new_job_folder,
    records_below,
    save_record,
    scan_records,
)
from pipeline.config.submit_section import Target
from pipeline.shared.errors import ClusterError

START = datetime(2026, 1, 1, tzinfo=UTC)


def submitted(
    runs: Path, run: str, handle: str, *, target: Target = "slurm", minute: int = 0, name: str | None = None
) -> JobRecord:
    folder = new_job_folder(runs / run, "train")
    folder.mkdir(parents=True)
    record = JobRecord(
        target=target,
        handle=handle,
        name=name or run,
        run_folder=runs / run,
        job_folder=folder,
        submitted_at=START + timedelta(minutes=minute),
        command=("python", "-m", "pipeline.cli", "train"),
    )
    save_record(record)
    return record


def test_the_jobs_of_all_runs_are_listed_oldest_first(tmp_path: Path) -> None:
    second = submitted(tmp_path, "a", "2", minute=2)
    first = submitted(tmp_path, "b", "1", minute=1)
    assert records_below(tmp_path) == (first, second)
    assert records_below(tmp_path / "a") == (second,)
    assert records_below(tmp_path / "absent") == ()


def test_a_job_is_found_by_id_handle_run_and_folder(tmp_path: Path) -> None:
    old = submitted(tmp_path, "a", "1", minute=1)
    new = submitted(tmp_path, "a", "2", minute=2)
    assert find_record(tmp_path, "slurm:1") == find_record(tmp_path, "1") == old
    assert find_record(tmp_path, "a") == find_record(tmp_path, str(tmp_path / "a")) == new


def test_the_newest_job_of_a_step_is_found_by_its_name(tmp_path: Path) -> None:
    old = submitted(tmp_path, "a", "1", name="a-train", minute=1)
    new = submitted(tmp_path, "a", "2", name="a-train", minute=2)
    last = submitted(tmp_path, "a", "3", name="a-evaluate", minute=3)
    assert find_record(tmp_path, "a-train") == new != old
    assert find_record(tmp_path, "a") == last


def test_a_handle_of_two_targets_must_be_written_whole(tmp_path: Path) -> None:
    submitted(tmp_path, "a", "1")
    on_ray = submitted(tmp_path, "a", "1", target="ray")
    with pytest.raises(ClusterError, match="ray:1"):
        find_record(tmp_path, "1")
    assert find_record(tmp_path, "ray:1") == on_ray


def test_an_unknown_job_is_an_error_with_the_searched_folder(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"{tmp_path}.*slurm:9"):
        find_record(tmp_path, "slurm:9")


@pytest.mark.parametrize("content", ["", "{}", '{"target": "moon"}', "[" * 5000, "\0"])
def test_a_record_that_cannot_be_read_hides_no_other(tmp_path: Path, content: str) -> None:
    path = submitted(tmp_path, "a", "1").job_folder / "job.json"
    path.write_text(content)
    other = submitted(tmp_path, "a", "2")
    found = scan_records(tmp_path)
    assert found.records == (other,)
    (line,) = found.unreadable
    assert str(path) in line
    assert find_record(tmp_path, "slurm:2") == other
    with pytest.raises(ClusterError, match=str(path)):
        find_record(tmp_path, "slurm:1")


def test_runs_are_found_at_any_depth_and_behind_links(tmp_path: Path) -> None:
    deep = submitted(tmp_path / "runs" / "group" / "jobs" / "more", "deep", "1")
    submitted(tmp_path / "runs" / "run" / "checkpoints" / "iter_0000004", "copy", "2")
    linked = submitted(tmp_path / "elsewhere", "linked", "3", minute=1)
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "runs" / "group" / "loop").symlink_to(tmp_path / "runs")
    assert records_below(tmp_path / "runs") == (deep, linked)
    assert find_record(tmp_path / "runs", "deep") == deep


def test_folders_of_jobs_submitted_in_one_second_differ(tmp_path: Path) -> None:
    assert len({new_job_folder(tmp_path, "train") for _ in range(20)}) == 20
