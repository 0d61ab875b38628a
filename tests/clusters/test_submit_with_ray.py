"""Jobs on a real Ray of two nodes: they compute what one machine does, whatever is killed on the way."""

import json
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import yaml

from cluster.job_files import newest_rank_logs
from cluster.job_record import JobRecord, JobState, JobStatus, find_record, records_below
from cluster.job_spec import JobSpec, RequeuePolicy, Resources
from cluster.on_ray.job_file import RAY_ADDRESS_WORD
from cluster.on_ray.target import RayTarget
from data_prep.journal import JOURNAL_NAME
from pipeline.checkpoint.tracker import latest_iteration
from tests.support.commands import MARK, REPOSITORY, Finished, megaponder, processes_with, wait_until
from tests.support.corpus import build_request, prepare_here, train_small_tokenizer, write_corpus
from tests.support.faults import steps_of
from tests.support.ray_cluster import RayCluster, ray_cluster
from tests.support.runs import NUM_ITERATIONS, has_trained
from tests.support.tiny_run import TrainedRun
from tests.support.workflow import write_pipeline

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("ray"), pytest.mark.timeout(240)]

LIMIT_SECONDS = 120.0
RAY_TRAIN_HELPER = "ray::_AutoscalingCoordinatorActor"


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A head and one more node, one CPU each."""
    short = tempfile.TemporaryDirectory(prefix="mp-", dir="/tmp", ignore_cleanup_errors=True)
    with short as folder, ray_cluster(Path(folder), variables={"PYTHONPATH": str(REPOSITORY)}) as cluster:
        yield cluster


@pytest.fixture
def mark(cluster: RayCluster) -> Iterator[str]:
    """A word in the environment of every process of a job; none of them, and no reservation, may be left."""
    mark = uuid.uuid4().hex
    yield mark
    wait_until(lambda: not left_processes(mark), seconds=60, otherwise=f"{left_processes(mark)}")
    assert reservations(cluster) == []


def left_processes(mark: str) -> list[str]:
    """Command lines of what carries a mark, without the one helper that Ray Train keeps in a cluster."""
    found = []
    for process in processes_with(mark):
        with suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return [command for command in found if command and RAY_TRAIN_HELPER not in command]


def reservations(cluster: RayCluster) -> list[str]:
    """Ids of the placement groups that hold or wait for machines."""
    from ray.util.state import list_placement_groups

    groups = list_placement_groups(address=cluster.url, timeout=30)
    return [group.placement_group_id for group in groups if group.state != "REMOVED"]


def submit(cluster: RayCluster, mark: str, recipe: Path, folder: Path, *overrides: str) -> Finished:
    settings = (
        f"output_dir={folder}",
        f'submit.environment={{{MARK}: "{mark}"}}',
        "submit.nodes=2",
        *overrides,
    )
    where = ("--target", "ray", "--ray-address", cluster.url)
    return megaponder("submit", "--config", str(recipe), *where, *settings)


def job_of(folder: Path, mark: str, *command: str, **changes: object) -> JobSpec:
    """Describe a job of one rank that runs any command."""
    fields = {
        "name": folder.name,
        "command": command,
        "run_folder": folder,
        "job_folder": folder / "jobs" / f"{folder.name}-{uuid.uuid4().hex[:8]}",
        "working_directory": REPOSITORY,
        "environment": ((MARK, mark),),
        "requeue": RequeuePolicy(max_requeues=2, signal_lead_seconds=30),
        "heartbeat_seconds": 1,
    }
    return JobSpec(**{**fields, **changes})  # type: ignore[arg-type]


def submit_job(cluster: RayCluster, job: JobSpec) -> JobRecord:
    job.log_folder.mkdir(parents=True)
    (record,) = RayTarget(cluster.url).submit(job)
    return record


def status_of(cluster: RayCluster, record: JobRecord) -> JobStatus:
    return RayTarget(cluster.url).status(record)


def ended(cluster: RayCluster, record: JobRecord) -> JobStatus:
    """Wait for the end of a job."""
    wait_until(
        lambda: status_of(cluster, record).state.is_final,
        seconds=LIMIT_SECONDS,
        otherwise=(record.job_folder / "logs").as_posix(),
    )
    return status_of(cluster, record)


def logs_of(record: JobRecord) -> str:
    files = [record.job_folder / "logs" / "driver.log", *newest_rank_logs(record.log_folder)]
    return "\n".join(file.read_text(errors="replace") for file in files if file.exists())


def ranks_of(mark: str) -> list[psutil.Process]:
    """Processes of a job's ranks."""
    return [process for process in processes_with(mark) if "RANK" in process.environ()]


@contextmanager
def suspended(processes: Sequence[psutil.Process]) -> Iterator[Sequence[psutil.Process]]:
    """Stop processes for a while."""
    for process in processes:
        process.suspend()
    yield processes
    for process in processes:
        process.resume()


def is_told(process: psutil.Process) -> bool:
    """Whether a SIGTERM waits for a stopped process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    pending = next(line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def test_two_nodes_compute_what_one_machine_does(
    cluster: RayCluster, mark: str, recipe: Path, trained: TrainedRun, tmp_path: Path
) -> None:
    submitted = submit(cluster, mark, recipe, tmp_path / "run")
    assert submitted.exit_code == 0, submitted.stderr
    followed = megaponder("jobs", "logs", "--follow", submitted.stdout.strip(), "--runs", str(tmp_path))
    assert followed.exit_code == 0, followed.stdout
    assert f"iteration       {NUM_ITERATIONS}/" in followed.stdout
    record = find_record(tmp_path, "run")
    assert status_of(cluster, record).requeues == 0
    assert steps_of(tmp_path / "run") == steps_of(trained.folder)
    assert len(newest_rank_logs(record.log_folder)) == 2


def test_a_killed_node_costs_no_step_and_changes_none(
    cluster: RayCluster, mark: str, recipe: Path, trained: TrainedRun, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    submitted = submit(cluster, mark, recipe, run, "checkpoint.interval=3", "submit.heartbeat_seconds=1")
    assert submitted.exit_code == 0, submitted.stderr
    record = find_record(tmp_path, "run")
    wait_until(lambda: has_trained(run, 5), seconds=LIMIT_SECONDS)
    cluster.kill_node("node1")
    cluster.add_node("node1")
    status = ended(cluster, record)
    assert (status.state, status.exit_code) == (JobState.DONE, 0), f"{status}\n{logs_of(record)}"
    assert status.requeues >= 1
    assert steps_of(run) == steps_of(trained.folder)


def test_a_cancelled_job_saves_and_resumes_when_it_is_requeued(
    cluster: RayCluster, mark: str, recipe: Path, trained: TrainedRun, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    submitted = submit(cluster, mark, recipe, run)
    assert submitted.exit_code == 0, submitted.stderr
    record = find_record(tmp_path, "run")
    wait_until(lambda: has_trained(run, 2), seconds=LIMIT_SECONDS)
    # A few steps take less time than the command: they wait for it.
    with suspended(ranks_of(mark)) as ranks:
        assert megaponder("jobs", "cancel", record.job_id, "--runs", str(tmp_path)).exit_code == 0
        wait_until(lambda: all(is_told(rank) for rank in ranks), seconds=30)
    status = ended(cluster, record)
    assert (status.state, status.exit_code) == (JobState.CANCELLED, 75), f"{status}\n{logs_of(record)}"
    saved = latest_iteration(run / "checkpoints")
    assert saved is not None
    assert 2 <= saved < NUM_ITERATIONS

    again = megaponder("jobs", "requeue", record.job_id, "--runs", str(tmp_path))
    assert again.stdout.strip() == f"{record.job_id}-again1"
    record = find_record(tmp_path, "run")
    status = ended(cluster, record)
    assert (status.state, status.exit_code) == (JobState.DONE, 0), f"{status}\n{logs_of(record)}"
    assert steps_of(run) == steps_of(trained.folder)


def test_a_job_without_capacity_ends_in_time_and_reports_what_is_missing(
    cluster: RayCluster, mark: str, tmp_path: Path
) -> None:
    three = {"resources": Resources(nodes=3), "start_timeout_seconds": 3}
    job = job_of(tmp_path / "big", mark, sys.executable, "-c", "", **three)
    status = ended(cluster, submit_job(cluster, job))
    assert (status.state, status.exit_code) == (JobState.FAILED, 2)
    lines = status.reason.splitlines()
    assert "3 s" in lines[0]
    assert lines[1] == "requested: 3 machine(s), each with 1 CPU"
    assert [line.rpartition(" with ")[2] for line in lines[2:4]] == ["1 CPU", "1 CPU"]
    assert lines[4].startswith("2 of 3 machine(s)")


def test_exit_codes_decide_whether_ranks_restart(cluster: RayCluster, mark: str, tmp_path: Path) -> None:
    codes = (9, 93, 75)
    # All at once: the third one finds room when another has ended.
    records = [
        submit_job(cluster, job_of(tmp_path / f"ends-with-{code}", mark, sys.executable, "-c", leave(code)))
        for code in codes
    ]
    for code, record in zip(codes, records, strict=True):
        status = ended(cluster, record)
        restarts = 2 if code == 75 else 0
        assert (status.state, status.exit_code, status.requeues) == (JobState.FAILED, code, restarts)
        assert f"rank 0 on {status.nodes[0]} ended with exit code {code}" in status.reason
        assert ("submit.max_requeues" in status.reason) == (code == 75)
        assert (record.log_folder / f"attempt-{restarts + 1:03d}" / "rank-00000.log").exists()
        assert "Traceback" not in status.reason


def leave(code: int) -> str:
    return f"import sys; sys.exit({code})"


def test_a_job_waits_for_those_it_depends_on(cluster: RayCluster, mark: str, tmp_path: Path) -> None:
    made = tmp_path / "made"

    def job(name: str, program: str, *after: JobRecord) -> JobRecord:
        ids = tuple(record.job_id for record in after)
        command = (
            sys.executable,
            "-c",
            f"import pathlib, sys, time; made = pathlib.Path({str(made)!r}); {program}",
        )
        return submit_job(cluster, job_of(tmp_path / name, mark, *command, kind="driver", dependencies=ids))

    first = job("first", "time.sleep(2); made.touch()")
    second = job("second", "sys.exit(0 if made.exists() else 5)", first)
    failing = job("failing", "sys.exit(5)", first, second)
    last = job("last", "made.unlink()", failing)
    assert [ended(cluster, record).exit_code for record in (first, second, failing)] == [0, 0, 5]
    status = ended(cluster, last)
    assert status.exit_code == 93
    assert failing.handle in status.reason
    assert made.exists()


def test_a_driver_that_is_killed_leaves_no_rank(cluster: RayCluster, mark: str, tmp_path: Path) -> None:
    job = job_of(tmp_path / "killed", mark, sys.executable, "-c", "import time; time.sleep(3600)")
    record = submit_job(cluster, job)
    wait_until(lambda: newest_rank_logs(job.log_folder), seconds=LIMIT_SECONDS)
    (driver,) = [p for p in processes_with(mark) if "cluster.on_ray.driver" in p.cmdline()]
    driver.send_signal(signal.SIGKILL)
    status = ended(cluster, record)
    assert status.state == JobState.FAILED
    assert "Ray runs" in status.reason


def num_finished(folder: Path) -> int:
    """Shards that are entered in the journal, whose first line is its header."""
    journal = folder / JOURNAL_NAME
    return max(len(journal.read_bytes().splitlines()) - 1, 0) if journal.exists() else 0


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_data_preparation_on_ray_gives_the_same_bytes_when_a_node_is_killed(
    cluster: RayCluster, mark: str, tmp_path: Path
) -> None:
    source = write_corpus(tmp_path / "text", num_documents=300)
    tokenizer = train_small_tokenizer(source, tmp_path / "tokenizer.model")
    prepare_here(source, tokenizer, tmp_path / "here")
    output = tmp_path / "there"
    request = build_request(source, tokenizer, output, workers=2, ray_address=RAY_ADDRESS_WORD)
    program = (
        "import sys; from data_prep.run import *; prepare(PrepareRequest.model_validate_json(sys.argv[1]))"
    )
    words = (sys.executable, "-c", program, request.model_dump_json())
    job = job_of(tmp_path / "prepare", mark, *words, kind="driver")
    record = submit_job(cluster, job)
    wait_until(lambda: num_finished(output) >= 3, seconds=LIMIT_SECONDS)
    cluster.kill_node("node1")
    cluster.add_node("node1")
    status = ended(cluster, record)
    assert (status.state, status.exit_code) == (JobState.DONE, 0), f"{status}\n{logs_of(record)}"
    assert folder_bytes(output) == folder_bytes(tmp_path / "here")


def test_an_invalid_run_is_refused_before_anything_is_queued(
    cluster: RayCluster, recipe: Path, tmp_path: Path
) -> None:
    missing = submit(cluster, "none", recipe, tmp_path / "run", f"data.path={tmp_path / 'nothing'}")
    assert missing.exit_code == 2
    assert "data.path" in missing.stderr
    nobody = megaponder(
        *("submit", "--config", str(recipe), "--target", "ray", "--ray-address", "http://127.0.0.1:9"),
        *(f"output_dir={tmp_path / 'run'}", "submit.nodes=2"),
    )
    assert nobody.exit_code == 2
    assert "http://127.0.0.1:9" in nobody.stderr
    assert "Traceback" not in nobody.stderr
    assert not (tmp_path / "run").exists()


def test_a_workflow_runs_on_ray_and_its_machines_prepare_the_text(
    cluster: RayCluster, mark: str, tmp_path: Path
) -> None:
    config = write_pipeline(tmp_path)
    settings = yaml.safe_load(config.read_text())
    settings["workflow"] = settings["workflow"][:2]
    settings["workflow"][0]["workers"] = 1
    settings["submit"] = {"environment": {MARK: mark}}
    config.write_text(yaml.safe_dump(settings))
    where = ("--target", "ray", "--ray-address", cluster.url, "--wait")
    submitted = megaponder("submit", "--config", str(config), *where)
    run = tmp_path / "runs" / "tiny"
    assert submitted.exit_code == 0, "\n".join(map(logs_of, records_below(run)))
    prepare, _ = records_below(run)
    assert "--ray-address" in prepare.command
    marker = json.loads((run / "workflow" / "train.json").read_text())
    assert (marker["exit_code"], marker["output"].split()[0]) == (0, "iter_0000006")
