"""What `megaponder submit` does once the settings are read: submit a training, or the steps of a workflow."""

import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from rich.box import SIMPLE_HEAD

from cluster.job_record import JOBS_FOLDER, JobRecord
from cluster.job_spec import JobSpec, SweepMember
from cluster.run_job import CONFIG_NAME, training_job
from cluster.running import refuse_unfinished
from cluster.targets import JobTarget
from cluster.workflow.submission import Choice, plan_workflow, refuse_running, step_to_job
from cluster.workflow.todo import PlannedStep
from pipeline.config.load import dump_private_config
from pipeline.config.schema import RunConfig
from pipeline.shared.console import open_console, say
from pipeline.shared.files import resolved_output
from pipeline.shared.folder_lock import folder_lock
from pipeline.shared.tables import Table


def submit_training(
    where: JobTarget,
    run: RunConfig,
    members: Sequence[SweepMember],
    *,
    after: Sequence[str],
    is_dry_run: bool,
) -> Sequence[JobRecord]:
    """Submit the training of a run, or of every member of a hyper-parameter sweep; return the jobs.

    Args:
        where: the target.
        run: checked.
        members: of the sweep; empty: the run itself.
        after: ids of jobs that must have succeeded first.
        is_dry_run: print what would be submitted instead.
    """
    job = training_job(run, dependencies=after, sweep=members)
    if is_dry_run:
        say(where.render(job.masked()), nl=False)
        return ()
    with _only_submission(job.run_folder):
        for folder in [member.run_folder for member in members] or [job.run_folder]:
            refuse_unfinished(folder, after=after)
        return _send(where, job, run)


def _only_submission(run_folder: Path) -> AbstractContextManager[None]:
    """Let no other command submit jobs of a run, or of the runs of a sweep beside it, at the same time."""
    return folder_lock(resolved_output(run_folder) / JOBS_FOLDER, "megaponder submit")


def submit_workflow(
    where: JobTarget, run: RunConfig, choice: Choice, *, after: Sequence[str], is_dry_run: bool
) -> list[JobRecord]:
    """Show which steps are done and which run, and submit those; return the last job of each.

    Args:
        where: the target.
        run: with a workflow.
        choice: of its steps.
        after: ids of jobs that must have succeeded before the first.
        is_dry_run: print what would be submitted instead.
    """
    planned = plan_workflow(run, choice)
    _show(planned)
    if is_dry_run:
        return _send_steps(where, run, choice, planned, after=after, is_dry_run=True)
    with _only_submission(run.output_dir):
        refuse_running(run, planned, after=after)
        return _send_steps(where, run, choice, planned, after=after, is_dry_run=False)


def _send_steps(
    where: JobTarget,
    run: RunConfig,
    choice: Choice,
    planned: Sequence[PlannedStep],
    *,
    after: Sequence[str],
    is_dry_run: bool,
) -> list[JobRecord]:
    sent: dict[str, JobRecord] = {}
    for step in planned:
        if step.reason is None:
            continue
        if is_dry_run:
            # Ids are known once the jobs before it are submitted; the names of their steps stand for them.
            jobs = [f"{run.submit.target}:{name}" for name in step.after] or after
            say(where.render(step_to_job(run, step, choice, dependencies=jobs).masked()), nl=False)
        else:
            jobs = [sent[name].job_id for name in step.after] or after
            sent[step.name] = _send(where, step_to_job(run, step, choice, dependencies=jobs), run)[-1]
    return list(sent.values())


def _show(planned: Sequence[PlannedStep]) -> None:
    table = Table("STEP", "", "WHY", box=SIMPLE_HEAD)
    for step in planned:
        table.add_row(step.name, "done" if step.reason is None else "runs", step.reason or "nothing changed")
    open_console(stderr=True).print(table)


def _send(where: JobTarget, job: JobSpec, run: RunConfig) -> Sequence[JobRecord]:
    """Create the job's folder, submit the job and print its ids; leave nothing behind where it is refused."""
    job.log_folder.mkdir(parents=True)
    try:
        dump_private_config(run, job.job_folder / CONFIG_NAME)
        records = where.submit(job)
    except BaseException:
        shutil.rmtree(job.job_folder, ignore_errors=True)
        for folder in (job.job_folder.parent, job.run_folder):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
    for record in records:
        say(record.job_id)
    say(f"folder: {_shown(job.job_folder)}; follow with `megaponder jobs logs -f`", err=True)
    return records


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
