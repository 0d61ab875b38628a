"""`megaponder submit`."""

from collections.abc import Sequence
from typing import Annotated

import typer

from cluster.commands.submission import submit_training, submit_workflow
from cluster.job_record import JobRecord
from cluster.preflight import check_run, refuse_masked
from cluster.sweep import sweep_members
from cluster.targets import target_named
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

TargetName = Annotated[
    Target | None,
    typer.Option("--target", "-t", help="Where the job runs; default: submit.target.", show_default=False),
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        show_default=False,
        help="Jobs API of the Ray cluster, such as http://head:8265; default: submit.ray_address, then "
        "RAY_API_SERVER_ADDRESS.",
    ),
]
After = Annotated[
    list[str] | None,
    typer.Option(
        metavar="JOB", show_default=False, help="Start only when this job has succeeded; may be repeated."
    ),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=A,B...",
        show_default=False,
        help="Hyper-parameter sweep: submit a run for each value; repeated, for each combination. Every run "
        "has its own name and folder next to output_dir. On SLURM they are one job array; not for local.",
    ),
]
Only = Annotated[
    str | None,
    typer.Option(metavar="STEP", show_default=False, help="Run this step of the workflow alone."),
]
From = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="STEP",
        show_default=False,
        help="Run this step of the workflow although it is done, and the steps its output changes.",
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Return when the job has ended, with its exit code.")]
StartLimit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="SECONDS",
        show_default=False,
        help="With --wait: cancel a job that has not started by then, and report what it waits for.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print exactly what would be submitted, and submit nothing.")
]


def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    target: TargetName = None,
    ray_address: RayAddress = None,
    after: After = None,
    sweep: Sweep = None,
    only: Only = None,
    again_from: From = None,
    waits: Wait = False,
    start_limit: StartLimit = None,
    dry_run: DryRun = False,
) -> None:
    """Submit a run to local processes, SLURM or Ray, with the file that trains on a laptop.

    Configuration, data and memory are checked here, before anything is queued. A job that receives a stop
    signal saves and later resumes, as it does after a hang or a lost node, up to submit.max_requeues times.
    Prints the job's id; watch the job with `megaponder jobs`.

    A file with a `workflow` (tokenizer, prepare, train, evaluate, generate, export, report) becomes a job for
    each step that is not done, after those it needs. A changed setting or input makes a step run again, and
    the steps that read its output.
    """
    settings = [*(overrides or [])]
    if target is not None:
        settings.append(f"submit.target={target}")
    if ray_address is not None:
        settings.append(f"submit.ray_address={ray_address}")
    run = load_config(config, settings)
    refuse_masked(run)
    where = target_named(run.submit.target, ray_address=run.submit.ray_address)
    jobs = after or []
    records: Sequence[JobRecord]
    if run.workflow or only is not None or again_from is not None:
        _refuse_with_workflow(run, sweep)
        choice = Choice(only=only, again_from=again_from)
        records = submit_workflow(where, run, choice, after=jobs, is_dry_run=dry_run)
    else:
        members = sweep_members(run, sweep or [])
        for member in members:
            check_run(load_config(config, [*settings, *member.overrides]))
        check_run(run)
        records = submit_training(where, run, members, after=jobs, is_dry_run=dry_run)
    if waits and records:
        last_counts = not run.workflow and run.submit.chain > 1
        code = wait_for(
            where,
            records,
            start_limit_seconds=start_limit,
            last_counts=last_counts,
            unreachable_limit_seconds=run.submit.unreachable_timeout_seconds,
        )
        raise typer.Exit(code)


def _refuse_with_workflow(run: RunConfig, sweep: Sequence[str] | None) -> None:
    if not run.workflow:
        raise ClusterError("--only and --from need a file with a workflow, but it has none; leave them out")
    if sweep:
        raise ClusterError(
            "--sweep needs a file without a workflow, but it has one; override it with workflow=null"
        )
