"""`megaponder submit`."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cluster.job_record import JobRecord
from cluster.job_spec import JobSpec
from cluster.preflight import check_run
from cluster.run_job import CONFIG_NAME, training_job
from cluster.sweep import sweep_members
from cluster.targets import JobTarget, target_named
from cluster.wait import wait_for
from pipeline.commands.shared import ConfigFile, Overrides, examples
from pipeline.config.load import dump_config, load_config
from pipeline.config.schema import RunConfig
from pipeline.config.submit_section import Target

EPILOG = examples(
    "megaponder submit --config run.yaml --target local",
    "megaponder submit --config run.yaml --target slurm --dry-run submit.nodes=8 submit.gpus_per_node=8",
    "megaponder submit --config run.yaml --target slurm submit.wall_time=24:00:00 submit.chain=5",
    "megaponder submit --config run.yaml --target slurm --sweep lr=1e-3,3e-4 --sweep seed=1,2,3",
    "megaponder submit --config run.yaml --target slurm --wait --start-limit 3600",
    "megaponder submit --config run.yaml --target ray --ray-address http://head:8265",
)


def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    target: Annotated[
        Target | None,
        typer.Option(
            "--target", "-t", help="Where the job goes; default: submit.target.", show_default=False
        ),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            show_default=False,
            help="Jobs API of the Ray cluster, such as http://head:8265; default: submit.ray_address, then "
            "RAY_API_SERVER_ADDRESS.",
        ),
    ] = None,
    after: Annotated[
        list[str] | None,
        typer.Option(
            metavar="JOB", show_default=False, help="Start only when this job has succeeded; may be repeated."
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B...",
            show_default=False,
            help="Submit a run for each value, as one job array; repeated, for each combination. Every run "
            "has a name and a folder of its own beside output_dir. SLURM only.",
        ),
    ] = None,
    waits: Annotated[
        bool, typer.Option("--wait", help="Return when the job has ended, with its exit code.")
    ] = False,
    start_limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="SECONDS",
            show_default=False,
            help="With --wait: cancel what has not started by then, and say what it waits for.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print exactly what would be submitted, and submit nothing.")
    ] = False,
) -> None:
    """Send a run to a cluster: local processes, SLURM or Ray, with the file that trains on a laptop.

    Configuration, data and memory are checked here, before anything is queued. The job saves when it is told
    to stop and goes back to the queue, up to submit.max_requeues times; watch it with `megaponder jobs`.
    """
    settings = [*(overrides or [])]
    if target is not None:
        settings.append(f"submit.target={target}")
    if ray_address is not None:
        settings.append(f"submit.ray_address={ray_address}")
    run = load_config(config, settings)
    members = sweep_members(run, sweep or [])
    for member in members:
        check_run(load_config(config, [*settings, *member.overrides]))
    check_run(run)
    job = training_job(run, dependencies=tuple(after or ()), sweep=members)
    where = target_named(run.submit.target, ray_address=run.submit.ray_address)
    if dry_run:
        typer.echo(where.render(job), nl=False)
        return
    records = _submit(where, job, run)
    if waits:
        code = wait_for(where, records, start_limit_seconds=start_limit, last_counts=job.chain > 1)
        raise typer.Exit(code)


def _submit(where: JobTarget, job: JobSpec, run: RunConfig) -> Sequence[JobRecord]:
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
    shutil.rmtree(job.job_folder)
    for folder in (job.job_folder.parent, job.run_folder):
        if not any(folder.iterdir()):
            folder.rmdir()


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
