import sys
from pathlib import Path
from typing import Any

from cluster.job_spec import RequeuePolicy, Resources
from cluster.run_job import training_job
from pipeline.config.load import build_config
from pipeline.config.schema import RunConfig
from tests.unit.pipeline.config.settings import changed_settings


def config(output: Path, **submit: Any) -> RunConfig:
    return build_config(
        changed_settings(
            name="mine",
            output_dir=str(output / "mine"),
            parallel__data=4,
            training__micro_batch_size=2,
            submit=submit,
        )
    )


def test_a_job_has_the_resources_that_the_run_requests(tmp_path: Path) -> None:
    job = training_job(
        config(
            tmp_path,
            target="slurm",
            nodes=2,
            gpus_per_node=2,
            cpus_per_rank=6,
            wall_time="2:00:00",
            max_requeues=3,
            signal_lead_seconds=90,
            environment={"B": "2", "A": "1"},
        )
    )
    assert job.resources == Resources(
        nodes=2, ranks_per_node=2, gpus_per_node=2, cpus_per_rank=6, wall_time="2:00:00"
    )
    assert job.resources.num_ranks == 4
    assert job.requeue == RequeuePolicy(max_requeues=3, signal_lead_seconds=90)
    assert {"A": "1", "B": "2", "PYTHONSAFEPATH": "1"}.items() <= dict(job.environment).items()
    assert list(job.environment) == sorted(job.environment)


def test_a_job_reads_the_settings_in_its_own_folder_and_writes_nothing_yet(tmp_path: Path) -> None:
    job = training_job(config(tmp_path))
    assert job.job_folder.parent == tmp_path / "mine" / "jobs"
    own = str(job.job_folder / "config.yaml")
    assert job.command == (sys.executable, "-P", "-m", "pipeline.cli", "train", "--config", own)
    assert list(tmp_path.iterdir()) == []


def test_a_container_has_its_own_interpreter_and_mounts_the_run_and_its_data(tmp_path: Path) -> None:
    job = training_job(
        config(tmp_path, target="slurm", container={"image": "mega.sqsh", "mounts": ["/raw:/raw"]})
    )
    assert job.command[0] == "python"
    assert job.container is not None
    data = Path("runs/data").resolve()
    assert job.container.mounts == (
        f"{tmp_path / 'mine'}:{tmp_path / 'mine'}",
        f"{data}:{data}",
        "/raw:/raw",
    )
