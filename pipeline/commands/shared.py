"""Arguments and habits that several commands have in common."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pipeline.ranks.environment import Ranks
from pipeline.shared.errors import UserError

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


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """End the process with a message and the error's exit code, not a traceback, on a :class:`UserError`."""
    try:
        yield
    except UserError as error:
        # Every rank meets the same error; the first one reports it.
        if Ranks.from_environment().rank == 0:
            typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)


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
    # Its first import on a machine logs that it searches for fonts.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    # That apex and Transformer Engine are absent is said once by our own log; the rest is Megatron's to mend.
    for module in (r"megatron\.core", r"torch\.distributed\.checkpoint"):
        warnings.filterwarnings("ignore", module=module)
    # Scripts parse Megatron's line as Megatron writes it: nothing stands before its own time stamp.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    progress = logging.getLogger(PROGRESS_LOGGER)
    progress.handlers = [handler]
    progress.propagate = False
