"""`megaponder submit`."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.job_spec import JobSpec
from cluster.preflight import check_run
from cluster.run_job import CONFIG_NAME, training_job
from cluster.targets import JobTarget, target_named
from pipeline.commands.shared import ConfigFile, Overrides, examples
from pipeline.config.load import dump_config, load_config
from pipeline.config.schema import RunConfig
from pipeline.config.submit_section import Target

EPILOG = examples(
    "megaponder submit --config run.yaml --target local",
    "megaponder submit --config run.yaml --target slurm --dry-run submit.nodes=8 submit.gpus_per_node=8",
    "megaponder submit --config run.yaml --target slurm submit.wall_time=24:00:00 submit.chain=5",
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
    check_run(run)
    job = training_job(run, dependencies=tuple(after or ()))
    where = target_named(run.submit.target, ray_address=run.submit.ray_address)
    if dry_run:
        typer.echo(where.render(job), nl=False)
        return
    _submit(where, job, run)


def _submit(where: JobTarget, job: JobSpec, run: RunConfig) -> None:
    job.log_folder.mkdir(parents=True)
    dump_config(run, job.job_folder / CONFIG_NAME)
    for record in where.submit(job):
        typer.echo(record.job_id)
    typer.echo(f"logs: {_shown(job.log_folder)}; follow with `megaponder jobs logs -f`", err=True)


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
