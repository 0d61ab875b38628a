"""Sending one described job off, from its folder to its id on standard output."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import typer

from cluster.job_record import JobRecord
from cluster.job_spec import JobSpec
from cluster.run_job import CONFIG_NAME
from cluster.targets import JobTarget
from pipeline.config.load import dump_config
from pipeline.config.schema import RunConfig


def send(where: JobTarget, job: JobSpec, run: RunConfig) -> Sequence[JobRecord]:
    """Make the job's folder, submit it and print its ids; what is refused leaves nothing behind."""
    job.log_folder.mkdir(parents=True)
    try:
        dump_config(run, job.job_folder / CONFIG_NAME)
        records = where.submit(job)
    except BaseException:
        _remove(job)
        raise
    for record in records:
        typer.echo(record.job_id)
    typer.echo(f"folder: {_shown(job.job_folder)}; follow with `megaponder jobs logs -f`", err=True)
    return records


def _remove(job: JobSpec) -> None:
    """Leave no trace of a job that was refused."""
    shutil.rmtree(job.job_folder, ignore_errors=True)
    for folder in (job.job_folder.parent, job.run_folder):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
