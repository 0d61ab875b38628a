"""`megaponder submit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.sending import send
from cluster.commands.workflow import submit_workflow
from cluster.job_record import JobRecord
from cluster.preflight import check_run
from cluster.run_job import training_job
from cluster.sweep import sweep_members
from cluster.targets import JobTarget, target_named
from cluster.wait import wait_for
from cluster.workflow.submission import Choice
from pipeline.commands.shared import ConfigFile, Overrides, examples
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.config.submit_section import Target
from pipeline.shared.errors import ClusterError

EPILOG = examples(
    "megaponder submit --config run.yaml --target local",
    "megaponder submit --config run.yaml --target slurm --dry-run submit.nodes=8 submit.gpus_per_node=8",
    "megaponder submit --config run.yaml --target slurm submit.wall_time=24:00:00 submit.chain=5",
    "megaponder submit --config run.yaml --target slurm --sweep lr=1e-3,3e-4 --sweep seed=1,2,3",
    "megaponder submit --config run.yaml --target slurm --wait --start-limit 3600",
    "megaponder submit --config run.yaml --target ray --ray-address http://head:8265",
    "megaponder submit --config pipeline.yaml --from evaluate",
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
            help="Submit a run for each value; repeated, for each combination. Every run has a name and a "
            "folder of its own beside output_dir. On SLURM they are one job array; not for local.",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="STEP", show_default=False, help="Of a file with steps, this one alone."),
    ] = None,
    again_from: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="STEP",
            show_default=False,
            help="Of a file with steps, run this one although it is done, and what its output then changes.",
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

    Configuration, data and memory are checked here, before anything is queued. A job that is told to stop
    saves, and it starts again from there, as it does after a hang or a lost node, up to submit.max_requeues
    times. Its id is printed; watch it with `megaponder jobs`.

    A file with a `workflow` (prepare, train, evaluate, export) becomes a job for each that is not done, after
    those it needs. A changed setting or input makes that step run again, and what reads its output.
    """
    settings = [*(overrides or [])]
    if target is not None:
        settings.append(f"submit.target={target}")
    if ray_address is not None:
        settings.append(f"submit.ray_address={ray_address}")
    run = load_config(config, settings)
    where = target_named(run.submit.target, ray_address=run.submit.ray_address)
    jobs = after or []
    if run.workflow or only is not None or again_from is not None:
        _refuse_with_workflow(run, sweep)
        choice = Choice(only=only, again_from=again_from)
        records: Sequence[JobRecord] = submit_workflow(where, run, choice, after=jobs, is_dry_run=dry_run)
    else:
        records = _submit_training(where, run, config, settings, sweep or [], after=jobs, is_dry_run=dry_run)
    if waits and records:
        last_counts = not run.workflow and run.submit.chain > 1
        raise typer.Exit(wait_for(where, records, start_limit_seconds=start_limit, last_counts=last_counts))


def _submit_training(
    where: JobTarget,
    run: RunConfig,
    config: Path,
    settings: Sequence[str],
    sweep: Sequence[str],
    *,
    after: Sequence[str],
    is_dry_run: bool,
) -> Sequence[JobRecord]:
    members = sweep_members(run, sweep)
    for member in members:
        check_run(load_config(config, [*settings, *member.overrides]))
    check_run(run)
    job = training_job(run, dependencies=after, sweep=members)
    if is_dry_run:
        typer.echo(where.render(job), nl=False)
        return ()
    return send(where, job, run)


def _refuse_with_workflow(run: RunConfig, sweep: Sequence[str] | None) -> None:
    if not run.workflow:
        raise ClusterError("--only and --from need a file with steps, but it has none; leave them out")
    if sweep:
        raise ClusterError(
            "--sweep must be of a file without steps, but it has some; write null for them: workflow=null"
        )
