"""Trainings on two nodes of a real SLURM that are told to stop, requeued and robbed of a node."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.job_record import JobRecord, JobState, find_record
from cluster.lead_time import DEFAULT_LEAD_SECONDS, signal_lead_seconds
from cluster.slurm.target import SlurmTarget
from pipeline.checkpoint.save_times import SAVE_TIMES_NAME, read_save_seconds
from tests.support.commands import megaponder, wait_until
from tests.support.faults import SAVE_INTERVAL, settings, steps_of
from tests.support.runs import has_trained
from tests.support.slurm_cluster import NODES, SlurmCluster
from tests.support.slurm_jobs import LONGEST_SECONDS, all_logs, ended, submit

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("slurm"), pytest.mark.timeout(240)]

NUM_ITERATIONS = 24
# Of it, the iteration after which something happens to the run.
STRUCK = 4
SETTINGS = (
    *settings(NUM_ITERATIONS),
    *("submit.nodes=2", "submit.memory_per_node=1G", "submit.start_timeout_seconds=60"),
)

Strike = Callable[[SlurmCluster, JobRecord], None]
# Loss, gradient norm and data hash by iteration.
Steps = dict[int, tuple[float, float, str]]


@pytest.fixture(scope="session")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Steps:
    """Steps of the same run on two ranks of this machine, from beginning to end."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    command = megaponder("train", "--config", str(recipe), f"output_dir={folder}", *settings(NUM_ITERATIONS))
    assert command.exit_code == 0, command.stderr
    return steps_of(folder)


def test_a_run_on_two_nodes_equals_one_on_this_machine(
    slurm: SlurmCluster, recipe: Path, tmp_path: Path, undisturbed: Steps
) -> None:
    folder = tmp_path / "run"
    arguments = ("--config", str(recipe), "--target", "slurm", "--wait", f"output_dir={folder}", *SETTINGS)
    command = megaponder("submit", *arguments)
    assert command.exit_code == 0, command.stderr
    assert steps_of(folder) == undisturbed
    record = find_record(tmp_path, command.stdout.strip())
    assert SlurmTarget().status(record).nodes == ("127.0.0.[11-12]",)
    first, second = SlurmTarget().logs(record)
    assert f"iteration {NUM_ITERATIONS:8d}/" in first.read_text()
    assert second.exists()
    assert len(read_save_seconds(folder / SAVE_TIMES_NAME)) == NUM_ITERATIONS / SAVE_INTERVAL
    assert signal_lead_seconds(folder, wall_time=None) < DEFAULT_LEAD_SECONDS
    shown = megaponder("jobs", "logs", "-f", str(folder), "--lines", "1000")
    assert (shown.exit_code, shown.stdout) == (0, first.read_text())


def requeue(slurm: SlurmCluster, record: JobRecord) -> None:
    slurm.ask("scontrol", "requeue", record.handle)


def tell_to_stop(slurm: SlurmCluster, record: JobRecord) -> None:
    slurm.ask("scancel", "--signal=TERM", record.handle)


def take_a_node(slurm: SlurmCluster, record: JobRecord) -> None:
    """Drain a node, kill all of it, and bring it back when the job waits for it."""
    slurm.lose_node(NODES[1])
    wait_until(lambda: slurm.state_of(record.handle) == "PENDING", seconds=60)
    slurm.bring_back(NODES[1])


@pytest.mark.parametrize("strike", [requeue, tell_to_stop, take_a_node])
def test_a_run_goes_on_exactly_where_it_was(
    slurm: SlurmCluster,
    recipe: Path,
    tmp_path: Path,
    undisturbed: Steps,
    strike: Strike,
) -> None:
    folder = tmp_path / "run"
    (record,) = submit(recipe, folder, *SETTINGS)
    wait_until(lambda: has_trained(folder, STRUCK), seconds=LONGEST_SECONDS)
    strike(slurm, record)
    status = ended(slurm, record)
    assert (status.state, status.exit_code) == (JobState.DONE, 0), all_logs(record)
    assert status.requeues >= 1
    assert "resumed from iteration" in SlurmTarget().logs(record)[0].read_text()
    assert steps_of(folder) == undisturbed
    assert not list(folder.rglob("*.partial"))
    assert not list(folder.rglob("*.tmp-*"))


def python_that(path: Path, line: str) -> str:
    """Write an interpreter for `submit.python` that does something else on the second rank."""
    path.write_text(f'#!/bin/bash\n[ "$RANK" = 1 ] && {line}\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return f"submit.python={path}"


@pytest.mark.parametrize(
    ("line", "exit_code", "message"),
    [
        # Another start may find all ranks; there is none here, because submit.max_requeues is 0.
        ("exec sleep 600", 75, "within 3 s"),
        ("exit 9", 9, "rank 1 has ended with 9"),
    ],
)
def test_ranks_that_never_meet_end_within_their_limit(
    slurm: SlurmCluster, recipe: Path, tmp_path: Path, line: str, exit_code: int, message: str
) -> None:
    folder = tmp_path / "run"
    limits = ("submit.start_timeout_seconds=3", "submit.max_requeues=0")
    python = python_that(tmp_path / "python", line)
    arguments = ("--config", str(recipe), "--target", "slurm", "--wait", f"output_dir={folder}")
    command = megaponder("submit", *arguments, *SETTINGS, *limits, python)
    record = find_record(tmp_path, command.stdout.strip())
    assert command.exit_code == exit_code, all_logs(record)
    # `megaponder` has waited for the end of every process of the job.
    assert message in all_logs(record)
    assert "Traceback" not in all_logs(record)
    assert not (folder / "metrics.jsonl").exists()
    # A rank that was killed leaves the lock of the folder at most.
    assert not list((folder / "checkpoints").glob("iter_*"))


def test_a_job_that_cannot_start_is_cancelled_and_tells_why(
    slurm: SlurmCluster, recipe: Path, tmp_path: Path
) -> None:
    arguments = ("--config", str(recipe), "--target", "slurm", f"output_dir={tmp_path / 'run'}", *SETTINGS)
    waits = ("--wait", "--start-limit", "1", "submit.partition=down")
    command = megaponder("submit", *arguments, *waits)
    assert command.exit_code == 2
    assert "PartitionDown" in command.stderr
    status = SlurmTarget().status(find_record(tmp_path, command.stdout.strip()))
    assert status.state == JobState.CANCELLED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("submit.partition=nowhere", "submit.partition"),
        ("data.path=/nowhere", "data.path"),
    ],
)
def test_what_cannot_run_is_refused_in_one_message_and_leaves_nothing(
    slurm: SlurmCluster, recipe: Path, tmp_path: Path, change: str, message: str
) -> None:
    folder = tmp_path / "run"
    arguments = ("--config", str(recipe), "--target", "slurm", f"output_dir={folder}", *SETTINGS)
    started = time.monotonic()
    command = megaponder("submit", *arguments, change)
    assert command.exit_code == 2
    assert message in " ".join(command.stderr.split())
    assert "Traceback" not in command.stderr
    assert time.monotonic() - started < 30
    assert not folder.exists()
    assert slurm.ask("squeue", "-h", "-t", "pending,running", "-o", "%i") == ""
