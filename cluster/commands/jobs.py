"""`megaponder jobs`: one set of commands for local processes, SLURM and Ray."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD

from cluster.follow import follow, newest_lines
from cluster.job_files import load_end
from cluster.job_record import JobRecord, JobState, JobStatus, find_record, find_records, scan_records
from cluster.targets import target_named
from pipeline.commands.shared import JsonFile, examples, show_or_write
from pipeline.shared.console import open_console, say
from pipeline.shared.errors import ClusterError, UnreachableClusterError
from pipeline.shared.tables import Table

app = typer.Typer(
    help="Watch, stop and restart submitted jobs, wherever they run.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

Job = Annotated[
    str,
    typer.Argument(metavar="JOB", help="Id from `submit` (slurm:1234), a run's name or folder, or RUN-STEP."),
]
Runs = Annotated[
    Path, typer.Option("--runs", metavar="DIR", help="Folder with runs at any depth, or one run.")
]
RUNS = Path("runs")
JobRow = tuple[JobRecord, JobStatus]


@app.command("list", epilog=examples("megaponder jobs list", "megaponder jobs list --runs /shared/runs"))
def list_jobs(runs: Runs = RUNS, json_file: JsonFile = None) -> None:
    """List the jobs of all runs in a folder and below it, oldest first."""
    found = scan_records(runs)
    rows = _statuses(found.records)
    show_or_write(
        lambda: open_console().print(_job_table(rows)), [_json_row(*row) for row in rows], json_file
    )
    for line in found.unreadable:
        say(f"unreadable: {line}", err=True)


@app.command(epilog=examples("megaponder jobs status slurm:1234", "megaponder jobs status my-run --json -"))
def status(
    job: Job,
    runs: Runs = RUNS,
    json_file: JsonFile = None,
) -> None:
    """Show the state of a job and the reason for it; for a run, of all its jobs, oldest first.

    With --json a run has the values of its newest job, and those of all its jobs as `jobs`.
    """
    records = find_records(runs, job)
    if len(records) > 1:
        rows = _statuses(records)
        content = _json_row(*rows[-1]) | {"jobs": [_json_row(*row) for row in rows]}
        show_or_write(lambda: open_console().print(_job_table(rows)), content, json_file)
        return
    record = records[0]
    found = target_named(record.target, ray_address=record.address).status(record)
    show_or_write(
        lambda: open_console().print(_status_table(record, found)),
        found.model_dump(mode="json"),
        json_file,
    )


def _status_table(record: JobRecord, found: JobStatus) -> Table:
    table = Table(box=SIMPLE_HEAD, show_header=False)
    for name, value in (
        ("job", record.job_id),
        ("run", str(record.run_folder)),
        ("state", found.state),
        ("reason", found.reason or "-"),
        ("exit code", "-" if found.exit_code is None else str(found.exit_code)),
        ("requeues", str(found.requeues)),
        ("nodes", ", ".join(found.nodes) or "-"),
        ("folder", str(record.job_folder)),
    ):
        table.add_row(name, value)
    return table


@app.command(epilog=examples("megaponder jobs logs my-run", "megaponder jobs logs -f slurm:1234 --rank 3"))
def logs(
    job: Job,
    runs: Runs = RUNS,
    follows: Annotated[
        bool,
        typer.Option("--follow", "-f", help="Follow the log until the job has ended; exit with its code."),
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, metavar="N", help="Earlier lines to show.")
    ] = 50,
    rank: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", show_default=False, help="Rank to show; default: the first."),
    ] = None,
) -> None:
    """Show the log of a rank in the newest attempt of a job."""
    record = find_record(runs, job)
    target = target_named(record.target, ray_address=record.address)
    if follows:
        raise typer.Exit(follow(target, record, lines=lines, rank=rank or 0))
    say(newest_lines(target.logs(record), lines=lines, rank=rank or 0), nl=False)


@app.command(epilog=examples("megaponder jobs cancel slurm:1234", "megaponder jobs cancel my-run"))
def cancel(job: Job, runs: Runs = RUNS) -> None:
    """Stop a job for good after it has saved; for a run, all its jobs, such as the links of a chain."""
    # Jobs that wait for others first, so that they do not start when those end.
    for record in reversed(find_records(runs, job)):
        target_named(record.target, ray_address=record.address).cancel(record)
        say(f"{record.job_id}: stop signal sent", err=True)


@app.command(epilog=examples("megaponder jobs requeue slurm:1234"))
def requeue(job: Job, runs: Runs = RUNS) -> None:
    """Let a job save and restart; restart one that has ended.

    Prints its id: a new one on Ray, and if SLURM no longer knows the job.
    """
    record = find_record(runs, job)
    again = target_named(record.target, ray_address=record.address).requeue(record)
    say(again.job_id)


def _statuses(records: Sequence[JobRecord]) -> list[JobRow]:
    """Ask for the status of each job; a cluster that does not respond is asked once."""
    rows: list[JobRow] = []
    away: set[tuple[str, str | None]] = set()
    for record in records:
        place = (record.target, record.address)
        status = _status_or_unknown(record, is_away=place in away)
        if status.is_unreachable:
            away.add(place)
        rows.append((record, status))
    return rows


def _job_table(rows: Sequence[JobRow]) -> Table:
    table = Table(
        *("JOB", "RUN", "STATE", "REQUEUES", "SUBMITTED (UTC)", "REASON"),
        box=SIMPLE_HEAD,
        optional=("REQUEUES", "SUBMITTED (UTC)"),
    )
    for record, status in rows:
        table.add_row(
            record.job_id,
            record.name,
            status.state,
            str(status.requeues),
            record.submitted_at.strftime("%Y-%m-%d %H:%M:%S"),
            status.reason,
        )
    return table


def _json_row(record: JobRecord, status: JobStatus) -> dict[str, Any]:
    about = record.model_dump(mode="json", include={"job_id", "name", "target", "run_folder", "submitted_at"})
    return about | {"job_folder": str(record.job_folder)} | status.model_dump(mode="json")


def _status_or_unknown(record: JobRecord, *, is_away: bool) -> JobStatus:
    """Return the status of a job; a cluster that does not respond must not hide the jobs of others.

    Args:
        is_away: its cluster did not respond a moment ago, so that only the job's folder is read.
    """
    try:
        if not is_away:
            return target_named(record.target, ray_address=record.address).status(record)
        end = load_end(record.job_folder)
        if end is not None:
            return JobStatus(state=end.state, reason=end.reason, exit_code=end.exit_code, nodes=end.nodes)
        return JobStatus(state=JobState.UNKNOWN, reason="its cluster does not respond", is_unreachable=True)
    except ClusterError as error:
        is_unreachable = isinstance(error, UnreachableClusterError)
        return JobStatus(state=JobState.UNKNOWN, reason=str(error), is_unreachable=is_unreachable)
