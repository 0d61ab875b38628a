import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.job_record import JobState
from pipeline import cli
from pipeline.shared.errors import ClusterError
from tests.support.local_jobs import LocalJobs, local_jobs


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LocalJobs]:
    with local_jobs(tmp_path) as found:
        yield found


def megaponder(*words: str) -> Result:
    return CliRunner().invoke(cli.app, words, env={"COLUMNS": "200"})


def test_without_jobs_the_list_is_empty(tmp_path: Path) -> None:
    result = megaponder("jobs", "list", "--runs", str(tmp_path))
    assert result.exit_code == 0
    assert "JOB" in result.output


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "requeue"])
def test_an_unknown_job_is_an_error_with_its_id(tmp_path: Path, command: str) -> None:
    result = megaponder("jobs", command, "slurm:9", "--runs", str(tmp_path))
    assert isinstance(result.exception, ClusterError)
    assert "slurm:9" in str(result.exception)


def test_a_job_is_listed_shown_read_stopped_and_restarted(jobs: LocalJobs) -> None:
    record = jobs.start("print('hello')\nif starts == 0:\n    wait_to_be_told(); sys.exit(75)")
    jobs.wait_for_text(record, "hello")
    runs = ("--runs", str(jobs.runs))
    listed = megaponder("jobs", "list", *runs)
    assert record.job_id in listed.output
    assert "running" in listed.output
    assert megaponder("jobs", "logs", "run", *runs, "-n", "1").stdout == "hello\n"
    assert "rank" in str(megaponder("jobs", "logs", "run", *runs, "--rank", "5").exception)
    assert record.job_id in megaponder("jobs", "cancel", record.job_id, *runs).output
    jobs.wait_for(record, JobState.CANCELLED)
    status = json.loads(megaponder("jobs", "status", "run", *runs, "--json").stdout)
    assert (status["state"], status["exit_code"]) == ("cancelled", 75)
    assert megaponder("jobs", "requeue", "run", *runs).stdout == f"{record.job_id}\n"
    assert megaponder("jobs", "logs", "-f", "run", *runs).exit_code == 0
    assert "requeues" in megaponder("jobs", "status", "run", *runs).output
