"""Jobs on a real SLURM: submitting them, and waiting for their end."""

import time
from collections.abc import Sequence
from pathlib import Path

from typer.testing import CliRunner

from cluster.job_record import JobRecord, JobStatus, records_below
from cluster.job_spec import JobSpec
from cluster.slurm.target import SlurmTarget
from pipeline.cli import app
from tests.support.slurm_cluster import SlurmCluster

# Of tests that start trainings, on a machine that does other work too.
LONGEST_SECONDS = 120.0


def submit(recipe: Path, folder: Path, *overrides: str, options: Sequence[str] = ()) -> list[JobRecord]:
    """Run `megaponder submit` for SLURM in this process; return the records of the run in a folder."""
    arguments = ["submit", "--config", str(recipe), "--target", "slurm", *options]
    result = CliRunner().invoke(app, [*arguments, f"output_dir={folder}", *overrides])
    assert result.exit_code == 0, result.output
    return records_below(folder)


def submit_command(spec: JobSpec) -> tuple[JobRecord, ...]:
    """Submit any command."""
    spec.log_folder.mkdir(parents=True)
    return SlurmTarget().submit(spec)


def ended(slurm: SlurmCluster, record: JobRecord, *, seconds: float = LONGEST_SECONDS) -> JobStatus:
    """Wait until a job has ended for good; fail with its logs where it takes too long."""
    end = time.monotonic() + seconds
    while True:
        slurm.state_of(record.handle)
        status = SlurmTarget().status(record)
        if status.state.is_final:
            return status
        assert time.monotonic() < end, f"{status}\n{all_logs(record)}"
        time.sleep(0.1)


def all_logs(record: JobRecord) -> str:
    """Return what a job has written, each file below its name."""
    files = sorted(record.job_folder.rglob("*.log"))
    return "\n".join(f"--- {path}\n{path.read_text(errors='replace')}" for path in files)
