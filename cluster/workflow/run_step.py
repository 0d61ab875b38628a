"""A workflow step inside its job: `python -m cluster.workflow.run_step NAME --config FILE [--again]`.

Runs `megaponder` in this process, so that signals and exit codes are not passed through another one, and
keeps the step's marker. A step that is done ends at once: the steps before it have run, but did not change
its inputs.
"""

import argparse
import logging
import runpy
import sys
from datetime import UTC, datetime
from pathlib import Path

from cluster.workflow.marker import Marker, load_marker, save_marker
from cluster.workflow.set_aside import set_aside, starts_from_scratch
from cluster.workflow.todo import reason_to_run
from cluster.workflow.work import StepWork, work_of
from pipeline.commands.shared import set_up_logging
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.config.workflow_section import WorkflowStep
from pipeline.ranks.environment import Ranks
from pipeline.ranks.run_lock import run_lock
from pipeline.shared.errors import UserError
from pipeline.shared.exit_codes import ExitCode

logger = logging.getLogger(__name__)


def main() -> None:
    """Run a step as one of its ranks; the first rank keeps the marker."""
    arguments = _parser().parse_args()
    set_up_logging(speaks=Ranks.from_environment().rank == 0)
    try:
        config = load_config(arguments.config)
        step = next(step for step in config.workflow if step.name == arguments.step)
        # Other steps may run side by side; one that trains moves what an earlier training has left.
        folders = (config.output_dir,) if step.command == "train" else ()
        with run_lock(*folders, work=f"megaponder {step.command}"):
            code = _run(config, step, arguments)
    except UserError as error:
        logger.error("%s", error)
        code = error.exit_code
    sys.exit(code)


def _run(config: RunConfig, step: WorkflowStep, arguments: argparse.Namespace) -> int:
    """Run a step, unless it is done; return its exit code."""
    work = work_of(config, step, arguments.config)
    marker = begin(config, step, work, job=str(arguments.config.parent), again=arguments.again)
    if marker is None:
        logger.info("%s is done already: its settings and inputs are those of its last run", step.name)
        return ExitCode.DONE
    on_ray = () if arguments.ray_address is None else ("--ray-address", arguments.ray_address)
    code = run_command((*work.arguments, *on_ray))
    if Ranks.from_environment().rank == 0:
        output = work.output() if code == ExitCode.DONE else None
        save_marker(config.output_dir, marker.ended(code, output))
    return code


def run_command(arguments: tuple[str, ...]) -> int:
    """Run `megaponder <arguments>` in this process, as `python -m pipeline.cli` does; return its code."""
    sys.argv = ["megaponder", *arguments]
    try:
        runpy.run_module("pipeline.cli", run_name="__main__", alter_sys=True)
    except SystemExit as left:
        return ExitCode.DONE if left.code is None else left.code if isinstance(left.code, int) else 1
    return ExitCode.DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m cluster.workflow.run_step", description=__doc__)
    parser.add_argument("step", help="its name")
    parser.add_argument("--config", type=Path, required=True, help="of the run, in the folder of the job")
    parser.add_argument("--again", action="store_true", help="run it although it is done")
    parser.add_argument("--ray-address", help="HOST:PORT of a running Ray that data is prepared on")
    return parser


def begin(config: RunConfig, step: WorkflowStep, work: StepWork, *, job: str, again: bool) -> Marker | None:
    """Mark a step as begun, if it has to run.

    Args:
        config, step, work: the step, see `work_of`.
        job: identifies this run of the step; a job that was interrupted has the same one when it restarts.
        again: run the step although it is done.

    Returns:
        the marker that the first rank has written; None where the step is done.
    """
    state = work.state(config.output_dir)
    has_run_here = state.marker is not None and state.marker.job == job
    if reason_to_run(state) is None and (has_run_here or not again):
        return None
    marker = Marker(
        step=step.name,
        arguments=work.arguments,
        settings=dict(work.settings),
        inputs=dict(state.inputs),
        job=job,
        started_at=datetime.now(UTC),
    )
    if Ranks.from_environment().rank == 0:
        before = load_marker(config.output_dir, step.name)
        if before is not None and starts_from_scratch(state, job=job, again=again):
            # The other ranks touch nothing before they have met this one.
            set_aside(config, step, before, state.output)
        save_marker(config.output_dir, marker)
    return marker


if __name__ == "__main__":
    main()
