"""What `megaponder submit` does with a file that has stages."""

from collections.abc import Sequence

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cluster.commands.sending import send
from cluster.job_record import JobRecord
from cluster.targets import JobTarget
from cluster.workflow.submission import Choice, plan_run_stages, refuse_running, stage_to_job
from cluster.workflow.todo import PlannedStage
from pipeline.config.schema import RunConfig


def submit_stages(
    where: JobTarget, run: RunConfig, choice: Choice, *, after: Sequence[str], is_dry_run: bool
) -> list[JobRecord]:
    """Show what is done and what runs, and submit that; return the last job of each stage.

    Args:
        where: the target.
        run: with stages.
        choice: of them.
        after: ids of jobs that must have succeeded before the first.
        is_dry_run: print what would be submitted instead.
    """
    planned = plan_run_stages(run, choice)
    _show(planned)
    if is_dry_run:
        _render(where, run, choice, planned, after)
        return []
    refuse_running(run, planned)
    sent: dict[str, JobRecord] = {}
    for stage in planned:
        if stage.reason is not None:
            jobs = [sent[name].job_id for name in stage.after] or after
            job = stage_to_job(run, stage, choice, dependencies=jobs)
            sent[stage.name] = send(where, job, run)[-1]
    return list(sent.values())


def _render(
    where: JobTarget, run: RunConfig, choice: Choice, planned: Sequence[PlannedStage], after: Sequence[str]
) -> None:
    for stage in planned:
        if stage.reason is not None:
            # Ids are known when the jobs before it are submitted; their stages stand for them.
            jobs = [f"{run.submit.target}:{name}" for name in stage.after] or after
            job = stage_to_job(run, stage, choice, dependencies=jobs)
            typer.echo(where.render(job), nl=False)


def _show(planned: Sequence[PlannedStage]) -> None:
    table = Table("STAGE", "", "WHY", box=SIMPLE_HEAD)
    for stage in planned:
        table.add_row(
            stage.name, "done" if stage.reason is None else "runs", stage.reason or "nothing changed"
        )
    Console(stderr=True).print(table)
