"""Running a workflow on this machine, one step after another, with the markers that submitted jobs keep.

A step whose settings and inputs have not changed is skipped, and a training that was stopped resumes.
"""

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from cluster.workflow.marker import save_marker
from cluster.workflow.run_step import begin
from cluster.workflow.work import work_of
from pipeline.checkpoint.tracker import latest_iteration
from pipeline.config.load import dump_config
from pipeline.config.schema import RunConfig
from pipeline.config.workflow_section import MARKER_FOLDER, WorkflowStep
from pipeline.ranks.launch import run_ranks
from pipeline.ranks.run_lock import run_lock
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.python_start import python_module

# Steps that run the model, which is split over all ranks; the others are one process.
_ON_ALL_RANKS = ("train", "evaluate", "generate")

RunCommand = Callable[[Sequence[str], int], int]


def _run_on_ranks(arguments: Sequence[str], num_ranks: int) -> int:
    return run_ranks(arguments, num_ranks=num_ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalWorkflow:
    """A workflow and how it is run here.

    Attributes:
        config: of the run.
        console: shows which step runs.
        again: names of steps that run although they are done.
        also_depends_on: settings that distinguish a training from an earlier one, in addition to those that
            decide its model.
        run_command: runs `python <arguments>` on a number of ranks and returns the exit code.
    """

    config: RunConfig
    console: Console
    again: Collection[str] = ()
    also_depends_on: Mapping[str, Any] = field(default_factory=dict)
    run_command: RunCommand = _run_on_ranks


def run_workflow(workflow: LocalWorkflow) -> int:
    """Run every step that is not done.

    Returns:
        0, or the exit code of the first step that failed or was stopped.

    Raises:
        UserError: an input is missing, a marker cannot be read, or another command writes the run.
    """
    with run_lock(workflow.config.output_dir, work="megaponder demo"):
        return _run_steps(workflow)


def _run_steps(workflow: LocalWorkflow) -> int:
    config_file = workflow.config.output_dir / MARKER_FOLDER / "config.yaml"
    config_file.parent.mkdir(parents=True, exist_ok=True)
    dump_config(workflow.config, config_file)
    job = f"local-{secrets.token_hex(8)}"
    for step in workflow.config.workflow:
        code = _run_step(workflow, step, config_file, job)
        if code != ExitCode.DONE:
            ended = f" {step.name} ended with exit code {code}; its own messages are above"
            workflow.console.print(Text.assemble(("stopped:", "bold red"), ended))
            return code
    return ExitCode.DONE


def _run_step(workflow: LocalWorkflow, step: WorkflowStep, config_file: Path, job: str) -> int:
    config = workflow.config
    work = work_of(config, step, config_file)
    if step.command == "train":
        work = replace(work, settings={**work.settings, **workflow.also_depends_on})
    marker = begin(config, step, work, job=job, again=step.name in workflow.again)
    if marker is None:
        workflow.console.rule(Text.assemble((step.name, "bold"), ": up to date"), align="left")
        return ExitCode.DONE
    workflow.console.rule(Text(step.name, style="bold"), align="left")
    num_ranks = config.parallel.world_size if step.command in _ON_ALL_RANKS else 1
    code = workflow.run_command([*python_module("pipeline.cli"), *work.arguments], num_ranks)
    is_cut_short = step.command == "train" and (
        latest_iteration(config.checkpoint_directory) != config.training.train_iters
    )
    if code == ExitCode.DONE and is_cut_short:
        # A run that is stopped from the keyboard saves and leaves with 0; the next start resumes it.
        code = ExitCode.REQUEUE
    save_marker(config.output_dir, marker.ended(code, work.output() if code == ExitCode.DONE else None))
    return code
