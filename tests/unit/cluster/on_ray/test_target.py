"""What is submitted to Ray, and the status of a job whose Ray does not respond."""

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster.job_files import JobEnd, next_attempt, save_end
from cluster.job_record import JobRecord, JobState
from cluster.job_spec import Container, JobSpec, RequeuePolicy, Resources, SweepMember
from cluster.on_ray.heartbeat import Heartbeat, save_heartbeat
from cluster.on_ray.job_file import JOB_FILE_NAME, load_job, render_job, submission_of
from cluster.on_ray.target import RayTarget
from pipeline.shared.errors import ClusterError

RENDERED = Path(__file__).with_name("two_nodes.json")
# Nothing listens on the port of the discard service.
NOBODY = "http://127.0.0.1:9"
JOB = JobSpec(
    name="tiny",
    command=("/opt/python", "-m", "pipeline.cli", "train", "--config", "/shared/my runs/config.yaml"),
    run_folder=Path("/shared/my runs"),
    job_folder=Path("/shared/my runs/jobs/20260101-000000-train-00ff"),
    working_directory=Path("/shared/work"),
    resources=Resources(nodes=2, ranks_per_node=8, gpus_per_node=8, cpus_per_rank=4),
    environment=(("NCCL_DEBUG", "WARN"),),
    setup=("ulimit -c 0",),
    requeue=RequeuePolicy(max_requeues=3, signal_lead_seconds=90),
)


def record_in(folder: Path) -> JobRecord:
    return JobRecord(
        target="ray",
        handle="20260101-000000-train-00ff",
        address=NOBODY,
        name="tiny",
        run_folder=folder,
        job_folder=folder,
        submitted_at=datetime(2026, 1, 1, tzinfo=UTC),
        command=("train",),
    )


def test_the_submission_is_rendered_as_recorded() -> None:
    assert RayTarget(NOBODY).render(JOB) == RENDERED.read_text(encoding="utf-8")


def test_a_rendered_job_is_read_back_equal(tmp_path: Path) -> None:
    (tmp_path / JOB_FILE_NAME).write_text(render_job(JOB))
    assert load_job(tmp_path / JOB_FILE_NAME) == JOB


def test_every_start_has_its_own_id() -> None:
    ids = [submission_of(JOB, start)["submission_id"] for start in range(3)]
    assert ids == [f"20260101-000000-train-00ff{end}" for end in ("", "-again1", "-again2")]


def test_a_sweep_becomes_a_job_for_each_run() -> None:
    members = tuple(
        SweepMember(name=f"tiny-{seed}", run_folder=Path(f"/shared/{seed}"), overrides=(f"seed={seed}",))
        for seed in (1, 2)
    )
    rendered = RayTarget(NOBODY).render(replace(JOB, sweep=members))
    for seed in (1, 2):
        assert f'"submission_id": "20260101-000000-train-00ff-{seed - 1}"' in rendered
        assert f'"seed={seed}"' in rendered


def test_secrets_reach_the_ranks_but_not_the_dashboard(tmp_path: Path) -> None:
    environment = (("HF_TOKEN", "hunter2"), ("MINE", "hunter2"), ("NCCL_DEBUG", "WARN"))
    job = replace(JOB, environment=environment, secrets=("MINE",))
    shown = submission_of(job)["runtime_env"]["env_vars"]
    assert "hunter2" not in str(shown)
    assert shown["NCCL_DEBUG"] == "WARN"
    # What it requests of Ray itself cannot read the file.
    assert submission_of(replace(job, kind="driver"))["runtime_env"]["env_vars"]["MINE"] == "hunter2"
    (tmp_path / JOB_FILE_NAME).write_text(render_job(job))
    assert load_job(tmp_path / JOB_FILE_NAME).environment == environment
    assert "hunter2" not in RayTarget(NOBODY).render(job.masked())


def test_what_a_job_cannot_hold_is_refused() -> None:
    for job in (replace(JOB, environment=(("A=1; B", "x"),)), replace(JOB, run_folder=Path("/a\nb"))):
        with pytest.raises(ClusterError):
            RayTarget(NOBODY).render(job)
        with pytest.raises(ClusterError):
            RayTarget(NOBODY).submit(job)


def test_a_container_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"submit\.container"):
        RayTarget(NOBODY).submit(replace(JOB, container=Container(image="a.sif", runtime="apptainer")))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (NOBODY, r"http://127\.0\.0\.1:9"),
        ("head:6379", "head:6379"),
        (None, r"--ray-address.*RAY_API_SERVER_ADDRESS"),
    ],
)
def test_a_wrong_address_is_an_error_that_contains_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str | None, message: str
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match=message):
        RayTarget(address).submit(replace(JOB, job_folder=tmp_path))


def test_a_dead_ray_is_distinguished_from_a_dead_job(tmp_path: Path) -> None:
    record = record_in(tmp_path)
    target = RayTarget(None)
    status = target.status(record)
    assert status.state == JobState.UNKNOWN
    assert NOBODY in status.reason
    alive = datetime.now(UTC) - timedelta(seconds=40)
    beat = Heartbeat(time=alive, activity="16 of 16 process(es) alive", hosts=("a", "b"))
    save_heartbeat(tmp_path, beat)
    for _ in range(2):
        next_attempt(record.log_folder)
    status = target.status(record)
    assert (status.state, status.requeues, status.nodes) == (JobState.UNKNOWN, 1, ("a", "b"))
    assert re.search(r" 4\d s ago .*16 of 16 process", status.reason)
    assert "jobs requeue" in status.reason
    save_end(tmp_path, JobEnd(exit_code=9, reason="rank 3 on b ended with exit code 9", nodes=("a", "c")))
    status = target.status(record)
    assert (status.state, status.exit_code, status.requeues) == (JobState.FAILED, 9, 1)
    assert status.nodes == ("a", "c")
    assert status.reason == "rank 3 on b ended with exit code 9"


def test_a_job_that_received_a_stop_is_cancelled_and_one_that_has_ended_is_done(tmp_path: Path) -> None:
    record = record_in(tmp_path)
    save_end(tmp_path, JobEnd(exit_code=75, cancelled=True))
    assert RayTarget(None).status(record).state == JobState.CANCELLED
    # Of what has ended nobody asks Ray any more.
    RayTarget(None).cancel(record)
    save_end(tmp_path, JobEnd(exit_code=0))
    assert RayTarget(None).status(record).state == JobState.DONE
