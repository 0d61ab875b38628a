import json
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster.job_record import JobState, find_record
from cluster.job_spec import Container
from cluster.local.files import Supervisor, load_supervisor, save_supervisor
from cluster.local.target import LocalTarget
from pipeline.shared.errors import ClusterError
from pipeline.shared.exit_codes import ExitCode
from tests.support.local_jobs import LocalJobs, local_jobs

WAITS = "wait_to_be_told(); sys.exit(75)"


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[LocalJobs]:
    with local_jobs(tmp_path) as found:
        yield found


def test_a_job_runs_all_its_ranks_and_leaves_their_logs(jobs: LocalJobs) -> None:
    record = jobs.start("print('done')", ranks=2)
    status = jobs.wait_for(record, JobState.DONE)
    assert (status.exit_code, status.requeues) == (0, 0)
    assert [file.read_text() for file in jobs.target.logs(record)] == [
        "start 0 of rank 0\ndone\n",
        "start 0 of rank 1\ndone\n",
    ]
    assert find_record(jobs.runs, record.job_id) == record
    assert jobs.nothing_is_left()


def test_a_killed_rank_restarts_with_all_others_and_is_counted(jobs: LocalJobs) -> None:
    record = jobs.start("os.kill(os.getpid(), 9) if starts == 0 and rank == 1 else None", ranks=2)
    status = jobs.wait_for(record, JobState.DONE)
    assert status.requeues == 1
    assert jobs.target.logs(record)[0].read_text() == "start 1 of rank 0\n"


@pytest.mark.parametrize("code", [ExitCode.USAGE, ExitCode.DO_NOT_REQUEUE])
def test_a_final_exit_code_is_not_restarted(jobs: LocalJobs, code: ExitCode) -> None:
    record = jobs.start(f"sys.exit({int(code)})")
    status = jobs.wait_for(record, JobState.FAILED)
    assert (status.exit_code, status.requeues) == (code, 0)
    assert f"exit code {int(code)}" in status.reason


def test_restarts_are_bounded(jobs: LocalJobs) -> None:
    (record,) = jobs.target.submit(jobs.spec("sys.exit(75)", requeues=1))
    status = jobs.wait_for(record, JobState.FAILED)
    assert (status.exit_code, status.requeues) == (75, 1)
    assert "megaponder jobs requeue" in status.reason


def test_a_cancelled_job_saves_and_does_not_restart(jobs: LocalJobs) -> None:
    record = jobs.start(WAITS)
    jobs.wait_for_text(record, "start 0")
    assert jobs.target.status(record).state == JobState.RUNNING
    jobs.target.cancel(record)
    status = jobs.wait_for(record, JobState.CANCELLED)
    assert (status.exit_code, status.requeues) == (75, 0)
    jobs.target.cancel(record)
    assert jobs.target.status(record) == status
    assert jobs.nothing_is_left()


def test_a_job_cancelled_before_its_supervisor_handles_signals_never_starts(jobs: LocalJobs) -> None:
    (record,) = jobs.target.submit(replace(jobs.spec(WAITS), setup=("sleep 0.5",)))
    jobs.target.cancel(record)
    status = jobs.wait_for(record, JobState.CANCELLED)
    assert status.exit_code == 75
    assert jobs.target.logs(record) == ()


def test_a_requeued_job_saves_and_restarts_running_or_ended(jobs: LocalJobs) -> None:
    record = jobs.start(f"if starts < 2:\n    {WAITS}")
    jobs.wait_for_text(record, "start 0")
    assert jobs.target.requeue(record) == record
    jobs.wait_for_text(record, "start 1")
    jobs.target.cancel(record)
    jobs.wait_for(record, JobState.CANCELLED)
    assert jobs.target.requeue(record) == record
    status = jobs.wait_for(record, JobState.DONE)
    assert status.requeues == 2


@pytest.mark.parametrize("code", [ExitCode.FAILED_VALIDATION, ExitCode.NOT_SUPPORTED])
def test_a_requeued_job_that_leaves_with_a_final_code_does_not_restart(
    jobs: LocalJobs, code: ExitCode
) -> None:
    record = jobs.start(f"wait_to_be_told(); sys.exit({int(code)})")
    jobs.wait_for_text(record, "start 0")
    jobs.target.requeue(record)
    status = jobs.wait_for(record, JobState.FAILED)
    assert (status.exit_code, status.requeues) == (code, 0)


def test_a_dead_supervisor_is_detected_and_takes_its_ranks_with_it(jobs: LocalJobs) -> None:
    record = jobs.start(WAITS, ranks=2)
    jobs.wait_for_text(record, "start 0", rank=1)
    process = load_supervisor(record.job_folder).process()
    assert process is not None
    process.kill()
    status = jobs.wait_for(record, JobState.FAILED)
    assert "supervisor.log" in status.reason
    assert jobs.nothing_is_left()


def test_another_process_with_the_pid_of_the_supervisor_is_not_mistaken_for_it(jobs: LocalJobs) -> None:
    record = jobs.start(WAITS)
    jobs.wait_for_text(record, "start 0")
    known = load_supervisor(record.job_folder)
    assert known.start_ticks is not None
    for changes in ({"start_ticks": known.start_ticks - 1}, {"boot": "before"}):
        save_supervisor(record.job_folder, known.model_copy(update=changes))
        assert jobs.target.status(record).state == JobState.FAILED
        jobs.target.cancel(record)
    save_supervisor(record.job_folder, known)
    assert jobs.target.status(record).state == JobState.RUNNING


def test_a_clock_that_is_set_changes_nothing(jobs: LocalJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    record = jobs.start(WAITS)
    jobs.wait_for_text(record, "start 0")
    # As psutil reads it from the kernel, it moves with the clock.
    boot_time = psutil.boot_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot_time + 2)
    assert jobs.target.status(record).state == JobState.RUNNING
    assert jobs.target.requeue(record) == record
    jobs.wait_for_text(record, "start 1")
    jobs.target.cancel(record)
    jobs.wait_for(record, JobState.CANCELLED)
    assert jobs.nothing_is_left()


def test_the_process_of_a_job_of_an_earlier_version_is_known(tmp_path: Path) -> None:
    process = psutil.Process()
    content = {"host": socket.gethostname(), "pid": process.pid, "created": process.create_time()}
    (tmp_path / "process.json").write_text(json.dumps(content))
    supervisor = load_supervisor(tmp_path)
    assert supervisor.is_here
    assert supervisor.process() == process


def test_a_job_of_another_machine_is_left_alone(jobs: LocalJobs) -> None:
    record = jobs.start("")
    jobs.wait_for(record, JobState.DONE)
    (record.job_folder / "end.json").unlink()
    elsewhere = load_supervisor(record.job_folder).model_copy(update={"host": "elsewhere", "boot": "other"})
    for supervisor in (elsewhere, Supervisor(host="elsewhere", pid=1, created=0.0)):
        save_supervisor(record.job_folder, supervisor)
        status = jobs.target.status(record)
        assert status.state == JobState.UNKNOWN
        assert "elsewhere" in status.reason
        with pytest.raises(ClusterError, match="elsewhere"):
            jobs.target.cancel(record)


def test_a_job_waits_for_the_one_before_it(jobs: LocalJobs) -> None:
    first = jobs.start("wait_to_be_told()", name="first")
    second = jobs.start("", name="second", after=(first.job_id,))
    jobs.wait_for_text(first, "start 0")
    assert jobs.target.status(second).state == JobState.QUEUED
    assert jobs.target.logs(second) == ()
    # It leaves with 0 although it was told to stop: it had finished.
    jobs.target.cancel(first)
    jobs.wait_for(first, JobState.DONE)
    jobs.wait_for(second, JobState.DONE)


def test_a_waiting_job_can_be_cancelled(jobs: LocalJobs) -> None:
    first = jobs.start(WAITS, name="first")
    second = jobs.start("", name="second", after=(first.job_id,))
    jobs.wait_for_text(first, "start 0")
    jobs.target.cancel(second)
    jobs.wait_for(second, JobState.CANCELLED)
    assert jobs.target.logs(second) == ()
    assert jobs.target.status(first).state == JobState.RUNNING


def test_a_job_after_one_that_failed_never_starts(jobs: LocalJobs) -> None:
    first = jobs.start("sys.exit(93)", name="first")
    second = jobs.start("", name="second", after=(first.job_id,))
    status = jobs.wait_for(second, JobState.FAILED)
    assert status.exit_code == 1
    assert first.job_id in status.reason
    assert jobs.target.logs(second) == ()


def test_a_job_can_only_wait_for_one_that_is_known(jobs: LocalJobs) -> None:
    with pytest.raises(ClusterError, match="local:nothing"):
        jobs.start("", after=("local:nothing",))


def test_setup_lines_that_fail_end_the_job(jobs: LocalJobs) -> None:
    spec = replace(jobs.spec(""), setup=("module-that-is-not-there",))
    (record,) = jobs.target.submit(spec)
    status = jobs.wait_for(record, JobState.FAILED)
    assert "supervisor.log" in status.reason
    assert "module-that-is-not-there" in (spec.log_folder / "supervisor.log").read_text()


def test_what_is_rendered_is_what_runs(jobs: LocalJobs) -> None:
    spec = replace(
        jobs.spec("print(os.environ['WORD'], os.getcwd())"),
        environment=(("WORD", "two words"),),
        working_directory=jobs.runs,
        setup=('WORD="$WORD and more"',),
    )
    (record,) = jobs.target.submit(spec)
    jobs.wait_for(record, JobState.DONE)
    assert f"two words and more {jobs.runs}" in jobs.target.logs(record)[0].read_text()
    assert (spec.job_folder / "job.sh").read_text() == jobs.target.render(spec)


def test_whatever_a_folder_is_called_a_job_runs_in_it_and_its_script_is_private(jobs: LocalJobs) -> None:
    hostile = jobs.runs / 'it\'s "my" $(touch pwned) `touch pwned`; # work'
    hostile.mkdir()
    body = "print(os.environ['HF_TOKEN'], os.getcwd()); sys.exit(75 if starts == 0 else 0)"
    value = "hun'ter2 $HOME\n`touch pwned`"
    inside = replace(jobs, runs=hostile)
    spec = replace(inside.spec(body), environment=(("HF_TOKEN", value),), working_directory=hostile)
    (record,) = jobs.target.submit(spec)
    jobs.wait_for(record, JobState.DONE)
    # Also after a restart.
    assert f"{value} {hostile}" in jobs.target.logs(record)[0].read_text()
    assert not list(jobs.runs.rglob("pwned"))
    assert stat.S_IMODE((spec.job_folder / "job.sh").stat().st_mode) == 0o600
    assert "ter2" not in jobs.target.render(spec.masked())


@pytest.mark.parametrize(
    "changes",
    [
        {"environment": (("A=1; touch pwned; B", "x"),)},
        {"environment": (("RANK", "3"),)},
        {"working_directory": Path("/a\nb")},
        {"setup": ("true\rtouch pwned",)},
    ],
)
def test_what_a_script_cannot_hold_is_refused(jobs: LocalJobs, changes: dict[str, object]) -> None:
    with pytest.raises(ClusterError):
        LocalTarget().submit(replace(jobs.spec(""), **changes))  # type: ignore[arg-type]  # fields of the class


def test_a_job_that_needs_a_cluster_is_refused(jobs: LocalJobs) -> None:
    spec = replace(jobs.spec(""), container=Container(image="image", runtime="pyxis"), chain=3)
    with pytest.raises(ClusterError, match=r"submit\.container and submit\.chain"):
        LocalTarget().render(spec)
