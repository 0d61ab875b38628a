"""The processes of one machine: what they are told and how they end."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.job_files import newest_rank_logs, next_attempt
from cluster.job_spec import JobSpec, Resources
from cluster.on_ray.node_ranks import Rendezvous, start_node_ranks
from pipeline.ranks.final_error import FINAL_ERROR_NAME, FINAL_ERROR_VARIABLE

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PRINT_VARIABLES = "import json, os, sys; sys.stdout.write(json.dumps({n: v for n, v in os.environ.items()}))"
SECOND_MACHINE = Rendezvous(address="10.0.0.1", port=1234, node=1)


def job_of(folder: Path, program: str, **changes: object) -> JobSpec:
    fields = {
        "name": "job",
        "command": (sys.executable, "-c", program),
        "run_folder": folder,
        "job_folder": folder / "jobs" / "job",
        "working_directory": folder,
        "resources": Resources(nodes=2, ranks_per_node=2, cpus_per_rank=3),
    }
    return JobSpec(**{**fields, **changes})  # type: ignore[arg-type]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_ranks_get_their_own_variables_those_of_the_job_and_those_of_setup(tmp_path: Path) -> None:
    job = job_of(tmp_path, PRINT_VARIABLES, environment=(("FROM", "job"),), setup=("export SETUP=done",))
    ranks = start_node_ranks(job, next_attempt(job.log_folder), SECOND_MACHINE)
    wait_until(lambda: None not in ranks.codes)
    assert ranks.codes == (0, 0)
    ranks.kill()
    logs = newest_rank_logs(job.log_folder)
    assert [log.name for log in logs] == ["rank-00002.log", "rank-00003.log"]
    for local_rank, log in enumerate(logs):
        found = json.loads(log.read_text())
        assert [found[name] for name in VARIABLES] == [
            *(str(2 + local_rank), str(local_rank), "4", "2", "10.0.0.1", "1234")
        ]
        assert found[FINAL_ERROR_VARIABLE] == str(log.parent / FINAL_ERROR_NAME)
        expected = {"FROM": "job", "SETUP": "done", "OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": ""}
        assert {name: found[name] for name in expected} == expected


def test_a_process_that_is_not_a_rank_has_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    job = job_of(tmp_path, PRINT_VARIABLES, kind="driver")
    ranks = start_node_ranks(job, next_attempt(job.log_folder), None)
    wait_until(lambda: None not in ranks.codes)
    ranks.kill()
    (log,) = newest_rank_logs(job.log_folder)
    assert not set(VARIABLES) & set(json.loads(log.read_text()))
