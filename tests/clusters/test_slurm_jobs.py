"""What SLURM does with the scripts of jobs: short commands on two nodes of a real one."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.job_record import JobState
from cluster.job_spec import JobSpec, Queue, RequeuePolicy, Resources, SweepMember
from cluster.slurm.target import SlurmTarget
from cluster.wait import wait_for
from pipeline.cli import app
from pipeline.shared.errors import ClusterError
from tests.support.commands import wait_until
from tests.support.slurm_cluster import NODES, SlurmCluster
from tests.support.slurm_jobs import all_logs, ended, submit_command

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("slurm"), pytest.mark.timeout(120)]

MakeJob = Callable[..., JobSpec]


@pytest.fixture
def job(tmp_path: Path) -> MakeJob:
    """Describe a job of one rank on each of two nodes, which run a line of shell."""

    def describe(line: str, **changes: object) -> JobSpec:
        fields: dict[str, object] = {
            "name": "short",
            "command": ("bash", "-c", line),
            "run_folder": tmp_path / "run",
            "job_folder": tmp_path / "run" / "jobs" / "short",
            "working_directory": tmp_path,
            "resources": Resources(nodes=2, memory_per_node="100M"),
            "start_timeout_seconds": 3,
        }
        return JobSpec(**{**fields, **changes})  # type: ignore[arg-type]  # the fields of the class

    return describe


def test_ranks_get_torchruns_variables_and_a_log_each(slurm: SlurmCluster, job: MakeJob) -> None:
    line = "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT $GREETING"
    spec = job(
        line,
        resources=Resources(nodes=2, ranks_per_node=2, memory_per_node="100M"),
        environment=(("GREETING", "good day"),),
        setup=('export GREETING="$GREETING, sir"',),
    )
    (record,) = submit_command(spec)
    status = ended(slurm, record)
    assert (status.state, status.exit_code, status.requeues) == (JobState.DONE, 0, 0)
    logs = SlurmTarget().logs(record)
    assert [path.name for path in logs] == [f"rank-0000{rank}.log" for rank in range(4)]
    words = [path.read_text().split(maxsplit=6) for path in logs]
    assert [row[:4] for row in words] == [[str(rank), "4", str(rank % 2), "2"] for rank in range(4)]
    assert {row[4] for row in words} == {NODES[0]}
    assert len({row[5] for row in words}) == 1
    assert {row[6] for row in words} == {"good day, sir\n"}


@pytest.mark.parametrize(
    ("codes", "expected", "starts"),
    [
        # As agreed: told to stop, until submit.max_requeues are used up.
        ((75, 75), 75, 2),
        # The rank that was the cause decides, not the one that only lost it.
        ((75, 9), 9, 1),
        ((93, 93), 93, 1),
        ((2, 2), 2, 1),
        # As a signal would end them, but by a user.
        ((130, 130), 130, 1),
        ((0, 0), 0, 1),
    ],
)
def test_exit_codes_decide_whether_a_job_restarts(
    slurm: SlurmCluster, job: MakeJob, codes: tuple[int, int], expected: int, starts: int
) -> None:
    line = f"codes=({codes[0]} {codes[1]}); exit ${{codes[$RANK]}}"
    (record,) = submit_command(job(line, requeue=RequeuePolicy(max_requeues=1)))
    status = ended(slurm, record)
    assert status.exit_code == expected, all_logs(record)
    assert status.state == (JobState.DONE if expected == 0 else JobState.FAILED)
    assert status.requeues == starts - 1
    if starts > 1:
        assert "submit.max_requeues is 1" in status.reason
    elif expected == 9:
        assert status.reason == "rank 1 has ended with 9"


def test_a_rank_that_does_not_leave_after_another_has_failed_is_ended(
    slurm: SlurmCluster, job: MakeJob
) -> None:
    (record,) = submit_command(job("[ $RANK = 1 ] && exit 9; sleep 300"))
    status = ended(slurm, record, seconds=30)
    assert (status.state, status.exit_code) == (JobState.FAILED, 9)


def test_a_cancelled_job_saves_and_does_not_restart(slurm: SlurmCluster, job: MakeJob) -> None:
    line = "trap 'echo saved; exit 75' TERM; echo here; for i in {1..300}; do sleep 0.1; done"
    (record,) = submit_command(job(line))
    wait_until(lambda: all_logs(record).count("here") == 2, seconds=30)
    SlurmTarget().cancel(record)
    status = ended(slurm, record, seconds=30)
    assert (status.state, status.exit_code, status.requeues) == (JobState.CANCELLED, 75, 0)
    assert all("saved" in path.read_text() for path in SlurmTarget().logs(record))


def test_a_requeued_job_saves_and_restarts(slurm: SlurmCluster, job: MakeJob, tmp_path: Path) -> None:
    line = (
        f"[ -e {tmp_path}/again$RANK ] && exit 0; touch {tmp_path}/again$RANK; "
        "trap 'exit 75' TERM; echo here; for i in {1..300}; do sleep 0.1; done"
    )
    (record,) = submit_command(job(line))
    wait_until(lambda: all_logs(record).count("here") == 2, seconds=30)
    assert SlurmTarget().requeue(record) == record
    status = ended(slurm, record, seconds=30)
    assert (status.state, status.exit_code, status.requeues) == (JobState.DONE, 0, 1)
    # One that has ended starts again on request, whatever its limit.
    again = SlurmTarget().requeue(record)
    wait_until(lambda: SlurmTarget().status(again).state == JobState.QUEUED, seconds=10)
    status = ended(slurm, again, seconds=30)
    assert (status.state, status.requeues) == (JobState.DONE, 2)


def test_a_chain_resumes_after_a_stop_and_ends_when_the_run_is_complete(
    slurm: SlurmCluster, job: MakeJob, tmp_path: Path
) -> None:
    line = f"mkdir {tmp_path}/first$RANK && exit 75; echo went on"
    records = submit_command(job(line, chain=3))
    statuses = [ended(slurm, record) for record in records]
    assert [status.exit_code for status in statuses] == [75, 0, 0]
    assert "link 2" in statuses[0].reason
    assert "link 3" in statuses[2].reason
    assert not SlurmTarget().logs(records[2])[0].name.startswith("rank")


def test_a_chain_is_followed_and_cancelled_as_a_whole(slurm: SlurmCluster, job: MakeJob) -> None:
    line = "trap 'exit 75' TERM; echo here; for i in {1..300}; do sleep 0.1; done"
    spec = job(line, chain=2)
    records = submit_command(spec)
    wait_until(lambda: all_logs(records[0]).count("here") == 2, seconds=30)
    assert SlurmTarget().logs(records[1]) == SlurmTarget().logs(records[0])
    result = CliRunner().invoke(app, ["jobs", "cancel", str(spec.run_folder)])
    assert result.exit_code == 0, result.output
    statuses = [ended(slurm, record, seconds=30) for record in records]
    assert [status.state for status in statuses] == [JobState.CANCELLED] * 2
    assert statuses[0].exit_code == 75


def test_a_chain_ends_where_a_restart_cannot_help(slurm: SlurmCluster, job: MakeJob) -> None:
    records = submit_command(job("exit 93", chain=2))
    assert [ended(slurm, record).exit_code for record in records] == [93, 93]
    assert "rank-" not in all_logs(records[1])


def test_each_run_of_a_sweep_has_its_own_settings_and_folder(
    slurm: SlurmCluster, job: MakeJob, tmp_path: Path
) -> None:
    members = tuple(
        SweepMember(name=f"run-{rate}", run_folder=tmp_path / f"run-{rate}", overrides=(f"lr={rate}", "a b"))
        for rate in ("1e-3", "3e-4")
    )
    spec = job('echo "$@"', command=("bash", "-c", 'echo "$0 $1"'), sweep=members)
    records = submit_command(spec)
    assert [record.run_folder for record in records] == [member.run_folder for member in members]
    assert [ended(slurm, record).exit_code for record in records] == [0, 0]
    texts = [SlurmTarget().logs(record)[0].read_text() for record in records]
    assert texts == ["lr=1e-3 a b\n", "lr=3e-4 a b\n"]


def test_whatever_a_folder_is_called_a_job_runs_in_it(
    slurm: SlurmCluster, job: MakeJob, tmp_path: Path
) -> None:
    hostile = tmp_path / 'it\'s "my" $(touch pwned) `touch pwned`; 100%j # work'
    hostile.mkdir()
    spec = job(
        'echo "$PWD|$HF_TOKEN"',
        run_folder=hostile / "run",
        job_folder=hostile / "run" / "jobs" / "short",
        working_directory=hostile,
        environment=(("HF_TOKEN", "hun'ter2 $HOME"),),
        resources=Resources(memory_per_node="100M"),
    )
    (record,) = submit_command(spec)
    assert ended(slurm, record).exit_code == 0, all_logs(record)
    assert SlurmTarget().logs(record)[0].read_text() == f"{hostile}|hun'ter2 $HOME\n"
    assert (record.job_folder / "job.log").exists()
    assert not list(tmp_path.rglob("pwned"))


def test_the_controller_may_be_away_while_a_job_is_waited_for(
    slurm: SlurmCluster, job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (record,) = submit_command(job(f"until [ -e {tmp_path}/go ]; do sleep 0.1; done; exit 17"))
    scontrol = shutil.which("scontrol")
    stand_in = tmp_path / "bin" / "scontrol"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f'#!/bin/sh\n[ -e {tmp_path}/back ] && exec {scontrol} "$@"\n'
        f"touch {tmp_path}/back {tmp_path}/go\n"
        "echo 'Unable to contact slurm controller (connect failure)' >&2; exit 1\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(stand_in.parent), prepend=":")
    code = wait_for(SlurmTarget(), [record], start_limit_seconds=None, last_counts=False)
    assert code == 17
    assert (tmp_path / "back").exists()


def test_a_job_waits_for_another_and_leaves_when_that_has_failed(slurm: SlurmCluster, job: MakeJob) -> None:
    (failed,) = submit_command(job("exit 2"))
    after = job("true", job_folder=failed.job_folder.with_name("after"), dependencies=(failed.job_id,))
    (record,) = submit_command(after)
    assert ended(slurm, record, seconds=30).state == JobState.CANCELLED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"queue": Queue(partition="nowhere")}, "[Ii]nvalid partition.*submit.partition must be one"),
        (
            {"queue": Queue(partition="members", account="strangers")},
            "Invalid account.*submit.account must be one",
        ),
        ({"queue": Queue(constraint="h100")}, "Invalid feature.*submit.constraint must name"),
        ({"queue": Queue(options=("--no-such-option",))}, "unrecognized option.*submit.options must hold"),
        ({"resources": Resources(nodes=3)}, "Node count specification invalid; submit.nodes"),
        (
            {"resources": Resources(memory_per_node="900G")},
            "Requested node configuration is not available; submit.nodes",
        ),
        ({"resources": Resources(cpus_per_rank=900)}, "More processors requested.*cpus_per_rank"),
        ({"resources": Resources(gpus_per_node=8)}, "configuration is not available.*gpus_per_node"),
        ({"resources": Resources(wall_time="9-00:00:00")}, "time limit is invalid.*submit.wall_time must be"),
    ],
)
def test_a_refusal_of_slurm_is_one_message_and_leaves_nothing_behind(
    slurm: SlurmCluster, job: MakeJob, changes: dict[str, object], message: str
) -> None:
    spec = job("true", **changes)
    with pytest.raises(ClusterError, match=message) as refused:
        submit_command(spec)
    assert "\n" not in str(refused.value)
    assert not spec.run_folder.exists()
    assert slurm.ask("squeue", "-h", "-t", "pending,running", "-o", "%i") == ""


def test_a_job_that_slurm_no_longer_knows_reports_how_it_ended(slurm: SlurmCluster, job: MakeJob) -> None:
    (record,) = submit_command(job("exit 9"))
    ended(slurm, record)
    unknown = record.model_copy(update={"handle": "987654"})
    assert SlurmTarget().status(unknown).exit_code == 9
    (record.job_folder / "end.json").unlink()
    assert SlurmTarget().status(unknown).state == JobState.UNKNOWN


def test_a_job_that_loses_a_node_restarts_when_there_are_nodes(
    slurm: SlurmCluster, job: MakeJob, tmp_path: Path
) -> None:
    (record,) = submit_command(job(f"mkdir {tmp_path}/first$RANK || exit 0; echo here; exec sleep 600"))
    wait_until(lambda: all_logs(record).count("here") == 2, seconds=30)
    slurm.lose_node(NODES[1])
    wait_until(lambda: slurm.state_of(record.handle) == "PENDING", seconds=30)
    slurm.bring_back(NODES[1])
    status = ended(slurm, record, seconds=60)
    assert (status.state, status.exit_code, status.requeues) == (JobState.DONE, 0, 1)


def test_each_rank_of_a_node_sees_its_gpus(slurm: SlurmCluster, job: MakeJob) -> None:
    gpus = Resources(nodes=2, ranks_per_node=2, gpus_per_node=2, memory_per_node="100M")
    (record,) = submit_command(job("echo $LOCAL_RANK of $CUDA_VISIBLE_DEVICES", resources=gpus))
    assert ended(slurm, record).exit_code == 0, all_logs(record)
    assert [path.read_text() for path in SlurmTarget().logs(record)] == ["0 of 0,1\n", "1 of 0,1\n"] * 2


def test_a_preempted_job_saves_and_restarts(slurm: SlurmCluster, job: MakeJob, tmp_path: Path) -> None:
    everything = Resources(nodes=2, cpus_per_rank=8, memory_per_node="100M")
    line = (
        f"mkdir {tmp_path}/first$RANK || exit 0; "
        "trap 'echo saved; exit 75' TERM; echo here; for i in {1..300}; do sleep 0.1; done"
    )
    (record,) = submit_command(job(line, resources=everything))
    wait_until(lambda: all_logs(record).count("here") == 2, seconds=30)
    folder = record.job_folder.with_name("urgent")
    urgent = job("true", job_folder=folder, resources=everything, queue=Queue(partition="urgent"))
    (other,) = submit_command(urgent)
    assert ended(slurm, other, seconds=60).exit_code == 0
    status = ended(slurm, record, seconds=60)
    assert (status.state, status.exit_code, status.requeues) == (JobState.DONE, 0, 1)
    assert all_logs(record).count("saved") == 2


def test_ranks_ended_by_a_signal_restart(slurm: SlurmCluster, job: MakeJob, tmp_path: Path) -> None:
    line = f"mkdir {tmp_path}/first$RANK && kill -{signal.SIGKILL.value} $$; true"
    (record,) = submit_command(job(line))
    status = ended(slurm, record)
    assert (status.state, status.requeues) == (JobState.DONE, 1)
    assert "rank 0 has ended with 137" in all_logs(record)
