"""`megaponder eval --tasks`."""

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.evaluation.task_groups import expand_task_names

if TYPE_CHECKING:
    from pipeline.evaluation.task_results import TaskReport, TaskScore


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """Options of the command that are about tasks; `names` are separated by commas."""

    names: str
    num_fewshot: int | None
    limit: int | None
    include_path: Path | None
    batch_size: int


def evaluate_tasks(
    checkpoint: Path,
    options: TaskOptions,
    *,
    iteration: int | None,
    tensor_parallel: int | None,
    output: Path | None,
    speaks: bool,
) -> None:
    """Run tasks on a checkpoint; the first rank shows and writes the scores."""
    if find_spec("lm_eval") is None:
        raise typer.BadParameter(
            "needs lm-evaluation-harness, which is not installed; pip install 'megaponder[eval]'",
            param_hint="--tasks",
        )
    names = expand_task_names([name.strip() for name in options.names.split(",") if name.strip()])
    if not names:
        raise typer.BadParameter("must name a task", param_hint="--tasks")
    # Read when the libraries are loaded: the hub is not told who loads what.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from pipeline.evaluation.harness.run import run_tasks
    from pipeline.evaluation.harness.settings import TaskSettings
    from pipeline.evaluation.task_results import TASKS_FILE, save_task_report
    from pipeline.inference import opened_checkpoint
    from pipeline.ranks import Ranks

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
        checkpoint, iteration=iteration, overrides=batch, tensor_parallel=tensor_parallel
    ) as opened:
        report = run_tasks(opened, settings)
        default_output = opened.config.output_dir / TASKS_FILE
    if not speaks:
        return
    Console().print(_table(report))
    save_task_report(report, output or default_output)
    typer.echo(f"written to {output or default_output}")


def _table(report: "TaskReport") -> Table:
    asked = "" if report.limit is None else f", {report.limit} questions of each"
    table = Table(title=f"{report.checkpoint}{asked}", box=SIMPLE_HEAD)
    table.add_column("task")
    for heading in ("shots", "questions", "score", "steps per token", "GFLOPs per token", "TFLOPs"):
        table.add_column(heading, justify="right")
    for score in report.tasks:
        table.add_row(
            score.task,
            str(score.num_fewshot),
            f"{score.num_samples:,}",
            "\n".join(_values(score)),
            f"{score.mean_steps:.3f}",
            f"{score.flops_per_token / 1e9:.4g}",
            f"{score.flops / 1e12:.4g}",
        )
    for name, metrics in report.groups.items():
        table.add_row(name, "", "", "\n".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    if report.mean_accuracy is not None and len(report.tasks) > 1:
        table.add_row("mean accuracy", "", "", f"{report.mean_accuracy:.4f}")
    return table


def _values(score: "TaskScore") -> list[str]:
    return [
        f"{name.removesuffix(',none')} {value:.4f}"
        + (f" +- {score.standard_errors[name]:.4f}" if name in score.standard_errors else "")
        for name, value in score.metrics.items()
    ]
