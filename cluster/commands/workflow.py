"""What `megaponder submit` does with a file that has steps."""

from collections.abc import Sequence

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cluster.commands.sending import send
from cluster.job_record import JobRecord
from cluster.targets import JobTarget
from cluster.workflow.submission import Choice, plan_workflow, refuse_running, step_to_job
from cluster.workflow.todo import PlannedStep
from pipeline.config.schema import RunConfig


def submit_workflow(
    where: JobTarget, run: RunConfig, choice: Choice, *, after: Sequence[str], is_dry_run: bool
) -> list[JobRecord]:
    """Show what is done and what runs, and submit that; return the last job of each step.

    Args:
        where: the target.
        run: with steps.
        choice: of them.
        after: ids of jobs that must have succeeded before the first.
        is_dry_run: print what would be submitted instead.
    """
    planned = plan_workflow(run, choice)
    _show(planned)
    if is_dry_run:
        _render(where, run, choice, planned, after)
        return []
    refuse_running(run, planned)
    sent: dict[str, JobRecord] = {}
    for step in planned:
        if step.reason is not None:
            jobs = [sent[name].job_id for name in step.after] or after
            job = step_to_job(run, step, choice, dependencies=jobs)
            sent[step.name] = send(where, job, run)[-1]
    return list(sent.values())


def _render(
    where: JobTarget, run: RunConfig, choice: Choice, planned: Sequence[PlannedStep], after: Sequence[str]
) -> None:
    for step in planned:
        if step.reason is not None:
            # Ids are known when the jobs before it are submitted; their steps stand for them.
            jobs = [f"{run.submit.target}:{name}" for name in step.after] or after
            job = step_to_job(run, step, choice, dependencies=jobs)
            typer.echo(where.render(job), nl=False)


def _show(planned: Sequence[PlannedStep]) -> None:
    table = Table("STEP", "", "WHY", box=SIMPLE_HEAD)
    for step in planned:
        table.add_row(step.name, "done" if step.reason is None else "runs", step.reason or "nothing changed")
    Console(stderr=True).print(table)
