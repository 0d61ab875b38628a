from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.job_record import JobState
from cluster.running import refuse_unfinished
from pipeline.shared.errors import ClusterError
from pipeline.shared.folder_lock import folder_lock
from tests.support.local_jobs import LocalJobs, local_jobs


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LocalJobs]:
    with local_jobs(tmp_path) as found:
        yield found


def test_a_run_with_a_job_that_has_not_ended_gets_no_second_one_beside_it(jobs: LocalJobs) -> None:
    refuse_unfinished(jobs.runs / "run", after=())
    record = jobs.start("wait_to_be_told(); sys.exit(75)")
    with pytest.raises(ClusterError, match=record.job_id):
        refuse_unfinished(record.run_folder, after=())
    refuse_unfinished(record.run_folder, after=(record.job_id,))
    refuse_unfinished(record.run_folder, after=(), is_meant=lambda found: found.name == "other")
    jobs.wait_for_text(record, "start 0")
    jobs.target.cancel(record)
    jobs.wait_for(record, JobState.CANCELLED)
    refuse_unfinished(record.run_folder, after=())


def test_a_run_that_another_command_trains_gets_no_job(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "megaponder train"), pytest.raises(ClusterError, match="megaponder train"):
        refuse_unfinished(tmp_path, after=())
    refuse_unfinished(tmp_path, after=())
