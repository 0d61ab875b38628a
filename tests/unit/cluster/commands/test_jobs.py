import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cluster.job_files import JobEnd, save_end
from cluster.job_record import JobRecord, JobState, new_job_folder, save_record
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


def test_what_cannot_be_read_or_reached_hides_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(
        f"#!/bin/sh\necho >>{tmp_path}/asked\n"
        "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1\n"
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=":")
    runs = tmp_path / "runs"
    for handle in ("1", "2", "3"):
        folder = new_job_folder(runs / "deep" / handle, "train")
        folder.mkdir(parents=True)
        save_record(
            JobRecord(
                target="slurm",
                handle=handle,
                name=handle,
                run_folder=folder.parents[1],
                job_folder=folder,
                submitted_at=datetime(2026, 1, int(handle), tzinfo=UTC),
                command=("train",),
            )
        )
    save_end(folder, JobEnd(exit_code=0))
    damaged = runs / "jobs" / "x" / "job.json"
    damaged.parent.mkdir(parents=True)
    damaged.touch()
    result = megaponder("jobs", "list", "--runs", str(runs))
    assert result.exit_code == 0
    states = [line.split()[2] for line in result.stdout.splitlines() if line.strip().startswith("slurm:")]
    assert states == ["unknown", "unknown", "done"]
    assert str(damaged) in result.stderr
    # A controller that is away is asked once, not once for each job.
    assert len((tmp_path / "asked").read_text().splitlines()) == 1
