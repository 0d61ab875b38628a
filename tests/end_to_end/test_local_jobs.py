"""A local job that trains, and of which a rank is killed, equals an uninterrupted run."""

from pathlib import Path

import pytest

from cluster.job_record import JobState, find_record
from cluster.local.files import load_supervisor
from tests.support.commands import wait_until
from tests.support.local_jobs import local_jobs
from tests.support.runs import data_hashes, has_trained, losses
from tests.support.tiny_run import TrainedRun

# Three starts of two ranks each.
pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(600)]


def test_a_job_with_a_killed_rank_equals_an_uninterrupted_run(
    recipe: Path, trained: TrainedRun, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    overrides = (f"output_dir={folder}", "checkpoint.interval=3", "metrics.tensorboard=false")
    with local_jobs(tmp_path) as jobs:
        submitted = jobs.command("submit", "--config", str(recipe), "--target", "local", *overrides)
        assert submitted.returncode == 0, submitted.stderr
        record = find_record(tmp_path, submitted.stdout.strip())
        wait_until(lambda: has_trained(folder, 5), otherwise=f"see {record.job_folder}")
        supervisor = load_supervisor(record.job_folder).process()
        assert supervisor is not None
        next(rank for rank in supervisor.children() if rank.environ()["RANK"] == "1").kill()
        followed = jobs.command("jobs", "logs", "-f", "run", "--runs", str(tmp_path))
        assert followed.returncode == 0, followed.stdout
        status = jobs.wait_for(record, JobState.DONE)
        assert status.requeues == 1
        assert jobs.nothing_is_left()
    assert losses(folder) == losses(trained.folder)
    assert data_hashes(folder) == data_hashes(trained.folder)
