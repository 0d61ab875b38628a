"""`megaponder demo`."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.shared import Overrides, examples, set_up_logging
from pipeline.shared.console import open_console

if TYPE_CHECKING:
    from pipeline.config.schema import RunConfig

logger = logging.getLogger(__name__)

RECIPE = Path(__file__).parents[2] / "pipeline" / "recipes" / "demo.yaml"
EPILOG = examples(
    "megaponder demo",
    "megaponder demo train-iters=100 output_dir=runs/short data.path=runs/short/data",
    "megaponder demo --fresh ponder.penalty_weight=0.06",
)
# Bookkeeping of earlier versions: checkpoints next to it are the demo's.
_OLD_LEDGER = "demo.json"
_FRESH_COMMANDS = ("train", "evaluate", "generate")


def demo(
    overrides: Overrides = None,
    config: Annotated[
        Path,
        typer.Option("--config", "-c", metavar="FILE", help="Settings to start from.", show_default=False),
    ] = RECIPE,
    workers: Annotated[
        int, typer.Option(min=0, metavar="N", help="Ray workers; 0 tokenizes in this process.")
    ] = 2,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Train, evaluate and generate again even if nothing has changed.")
    ] = False,
) -> None:
    """Run everything once, small: raw text, tokens, training, evaluation, generation, report.

    The text is the source of this Python's standard library; nothing is downloaded. Each of the two ranks
    computes on a GPU of its own; with fewer GPUs all compute on the CPU. Prints a table and writes
    report.html into the folder of the run. Steps whose settings and inputs have not changed are skipped, and
    a training that was stopped resumes.
    """
    from cluster.workflow.local_run import LocalWorkflow, run_workflow

    set_up_logging()
    run = load_demo(config, overrides or [], num_workers=workers)
    choose_device(run)
    make_room(run, config)
    workflow = LocalWorkflow(
        config=run,
        console=open_console(),
        again=[step.name for step in run.workflow if is_run_again(step.command, fresh=fresh)],
        also_depends_on=further_dependencies(run),
    )
    raise typer.Exit(run_workflow(workflow))


def load_demo(config: Path, overrides: Sequence[str], *, num_workers: int) -> "RunConfig":
    """Read the settings, with the steps of the recipe where the file has none.

    Raises:
        ConfigError: with every problem.
    """
    from pipeline.config.load import load_config
    from pipeline.config.workflow_section import PrepareStep

    run = load_config(config, overrides)
    steps = run.workflow or load_config(RECIPE).workflow
    return run.model_copy(
        update={
            "workflow": tuple(
                step.model_copy(update={"workers": num_workers}) if isinstance(step, PrepareStep) else step
                for step in steps
            )
        }
    )


def choose_device(run: "RunConfig") -> None:
    """Let this process and those that it starts compute on the CPU where ranks would outnumber GPUs.

    What the settings or the environment say about the device wins.
    """
    from pipeline.ranks.gpu_variables import DEVICE_VARIABLE, num_gpus

    ranks = run.parallel.world_size
    if run.parallel.device != "auto" or os.environ.get(DEVICE_VARIABLE, "auto") != "auto":
        return
    found = num_gpus()
    if found >= ranks:
        return
    os.environ[DEVICE_VARIABLE] = "cpu"
    if found:
        logger.info(
            "the %d ranks of the demo compute on the CPU, because this machine shows %d GPU(s); for one rank "
            "on a GPU, add parallel.tensor=1",
            ranks,
            found,
        )


def is_run_again(command: str, *, fresh: bool) -> bool:
    """Tell whether a step runs although it is done; the report always does, to show its table."""
    return command == "report" or (fresh and command in _FRESH_COMMANDS)


def further_dependencies(run: "RunConfig") -> dict[str, object]:
    """Return what else distinguishes two demos: the program, and what a submitted training may change."""
    from cluster.workflow.identity import identity_of_program

    return {
        "program": identity_of_program(),
        "layout": run.parallel.sizes,
        "iterations": run.training.train_iters,
    }


def make_room(run: "RunConfig", source: Path) -> None:
    """Check that the demo may write into the run's folder.

    Raises:
        ConfigError: it holds checkpoints that are not the demo's.
    """
    from cluster.workflow.marker import load_marker
    from cluster.workflow.set_aside import set_training_aside
    from pipeline.config.errors import ConfigError, ConfigProblem

    trainings = [step.name for step in run.workflow if step.command == "train"]
    is_known = any(load_marker(run.output_dir, name) is not None for name in trainings)
    if is_known or not run.checkpoint_directory.exists():
        return
    if (run.output_dir / _OLD_LEDGER).exists():
        set_training_aside(run)
        return
    problem = ConfigProblem(
        path="output_dir",
        rule="must be a folder that the demo may write into",
        value=f"{run.output_dir}, whose {run.checkpoint_directory.name} are of another run",
        cure="set output_dir to a new folder",
    )
    raise ConfigError([problem], source=str(source))
