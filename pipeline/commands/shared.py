"""Arguments and habits that several commands have in common."""

import logging
import warnings
from pathlib import Path
from typing import Annotated

import typer

PROGRESS_LOGGER = "pipeline.run.progress"

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE...",
        help="Settings that win over the file: group.key=value, or Megatron's name (train-iters=100). "
        "Values are YAML; the last one counts.",
        show_default=False,
    ),
]
ConfigFile = Annotated[
    Path,
    typer.Option(
        "--config", "-c", metavar="FILE", help="YAML file of a run; examples are in pipeline/recipes."
    ),
]


def examples(*lines: str) -> str:
    """Lay out example command lines for the end of a help text."""
    return "\n\n".join(["Examples:", *lines])


def set_up_logging(*, speaks: bool = True) -> None:
    """Send the program's log to standard error.

    Args:
        speaks: False for ranks other than the first, which only warn.
    """
    logging.basicConfig(
        level=logging.INFO if speaks else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("megatron").setLevel(logging.WARNING)
    # That apex and Transformer Engine are absent is said once by our own log; the rest is Megatron's to mend.
    for module in (r"megatron\.core", r"torch\.distributed\.checkpoint"):
        warnings.filterwarnings("ignore", module=module)
    # Scripts parse Megatron's line as Megatron writes it: nothing stands before its own time stamp.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    progress = logging.getLogger(PROGRESS_LOGGER)
    progress.handlers = [handler]
    progress.propagate = False
