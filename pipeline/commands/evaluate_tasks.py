"""`megaponder eval --tasks`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD

from pipeline.commands.early_checks import check_checkpoint
from pipeline.commands.limit_options import LimitOptions, spent_line
from pipeline.commands.shared import show_or_write_text
from pipeline.commands.spellings import STANDARD_OUTPUT
from pipeline.evaluation.tasks import expand_task_names
from pipeline.shared.console import open_console, say
from pipeline.shared.extras import how_to_install
from pipeline.shared.tables import Table
from pipeline.shared.units import metric

if TYPE_CHECKING:
    from pipeline.evaluation.tasks import TaskReport, TaskScore


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Options of the command that are about tasks; `names` are separated by commas."""

    names: str
    num_fewshot: int | None
    limit: int | None
    include_path: Path | None
    batch_size: int
    limits: LimitOptions


def evaluate_tasks(
    checkpoint: Path,
    options: TaskOptions,
    *,
    iteration: int | None,
    tensor_parallel: int | None,
    data: Path | None,
    json_file: Path | None,
    speaks: bool,
) -> None:
    """Run tasks on a checkpoint; the first rank prints and writes the scores."""
    # Read when the libraries are loaded; it keeps them from reporting downloads to the hub.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    _check_is_installed()
    names = expand_task_names([name.strip() for name in options.names.split(",") if name.strip()])
    if not names:
        raise typer.BadParameter("must name a task", param_hint="--tasks")
    check_checkpoint(checkpoint, iteration=iteration, data=data, reads_data=False)
    from pipeline.checkpoint.folder import CONFIG_NAME
    from pipeline.config.load import load_config
    from pipeline.evaluation.harness.run import run_tasks
    from pipeline.evaluation.opened import opened_checkpoint
    from pipeline.evaluation.tasks import TASKS_FILE, TaskSettings, task_report_text
    from pipeline.ranks.environment import Ranks

    settings = TaskSettings(
        names=names,
        include_path=options.include_path,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        batch_size=options.batch_size,
    )
    # Tasks have no global batch; one that any number of replicas divides.
    batch = (
        "training.micro_batch_size=1",
        f"training.global_batch_size={Ranks.from_environment().world_size}",
    )
    with opened_checkpoint(
        checkpoint, iteration=iteration, overrides=batch, tensor_parallel=tensor_parallel, data=data
    ) as opened:
        own = load_config(opened.folder / CONFIG_NAME)
        num_samples = own.evaluation.iters * own.training.global_batch_size
        applied, met = options.limits.limits(opened, num_samples=num_samples)
        if met is not None and speaks:
            say(spent_line(met), err=json_file == Path(STANDARD_OUTPUT))
        report = run_tasks(opened, settings, limits=applied)
        default_file = opened.config.output_dir / TASKS_FILE
    if not speaks:
        return
    show_or_write_text(
        lambda: open_console().print(_table(report)), task_report_text(report), json_file or default_file
    )


def _check_is_installed() -> None:
    # Found, not imported, which takes seconds.
    if find_spec("lm_eval") is None:
        raise typer.BadParameter(
            f"needs lm-evaluation-harness, which is not installed; {how_to_install('eval')}",
            param_hint="--tasks",
        )


def _table(report: "TaskReport") -> Table:
    asked = "" if report.limit is None else f", at most {report.limit} questions of each"
    table = Table(
        title=f"{report.checkpoint}{asked}", box=SIMPLE_HEAD, optional=("shots", "FLOPs", "FLOPs/token", "+-")
    )
    table.add_column("task", overflow="fold")
    table.add_column("shots", justify="right")
    table.add_column("metric", overflow="fold")
    for heading in ("score", "+-", "steps", "FLOPs/token", "FLOPs"):
        table.add_column(heading, justify="right", no_wrap=True)
    for score in report.tasks:
        for row in _rows(score):
            table.add_row(*row)
    for group, metrics in report.groups.items():
        for name, value in metrics.items():
            table.add_row(group, "", name.removesuffix(",none"), _number(value))
    if report.mean_accuracy is not None and len(report.tasks) > 1:
        table.add_row("mean", "", "acc", _number(report.mean_accuracy))
    return table


def _rows(score: "TaskScore") -> Iterator[tuple[str, ...]]:
    """Yield one row for each metric, the first with the cost of the task."""
    about = (score.task, str(score.num_fewshot))
    cost = (f"{score.mean_steps:.3f}", metric(score.flops_per_token), metric(score.flops))
    for name, value in score.metrics.items():
        error = score.standard_errors.get(name)
        shown = "" if error is None else _number(error)
        yield (*about, name.removesuffix(",none"), _number(value), shown, *cost)
        about, cost = ("", ""), ("", "", "")


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1000 else f"{value:.4g}"
