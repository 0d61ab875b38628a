"""Naming a checkpoint on the command line."""

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="Folder of a run's checkpoints (the newest is taken), or one of its iter_ folders.",
    ),
]
Iteration = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="Take the checkpoint of this iteration.", show_default=False),
]


def speaks() -> bool:
    """Return whether this process is the first rank, the one that shows results."""
    from pipeline.ranks.environment import Ranks

    return Ranks.from_environment().rank == 0
