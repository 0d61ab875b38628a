"""Steps as jobs that SLURM starts one after the other."""

import json
from pathlib import Path

import pytest

from cluster.job_record import records_below
from tests.support.commands import megaponder
from tests.support.slurm_cluster import SlurmCluster
from tests.support.workflow import write_pipeline

pytestmark = [pytest.mark.cluster, pytest.mark.xdist_group("slurm"), pytest.mark.timeout(240)]

WHERE = ("--target", "slurm", "submit.memory_per_node=1G")


def test_slurm_runs_steps_in_their_order_and_nothing_twice(slurm: SlurmCluster, tmp_path: Path) -> None:
    config = write_pipeline(tmp_path)
    run = tmp_path / "runs" / "tiny"
    submitted = megaponder("submit", "--config", str(config), *WHERE, "--wait")
    assert submitted.exit_code == 0, submitted.stderr
    scripts = [(record.job_folder / "job.sbatch").read_text() for record in records_below(run)]
    handles = [record.handle for record in records_below(run)]
    # Export waits for the evaluation that its model card shows.
    for script, waited_for in zip(scripts, ([], [0], [0, 1], [1, 2]), strict=True):
        ids = ":".join(handles[index] for index in waited_for)
        assert (f"#SBATCH --dependency=afterok:{ids}\n" in script) == bool(waited_for)
    times = {path.stem: json.loads(path.read_text()) for path in (run / "workflow").glob("*.json")}
    assert times["prepare"]["finished_at"] < times["train"]["started_at"]
    assert times["train"]["finished_at"] < times["evaluate"]["started_at"]
    assert times["evaluate"]["finished_at"] < times["export"]["started_at"]
    again = megaponder("submit", "--config", str(config), *WHERE, "--wait")
    assert (again.exit_code, again.stdout) == (0, "")
