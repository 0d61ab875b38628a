"""`megaponder demo`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pipeline.commands.shared import Overrides, examples, set_up_logging

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"
EPILOG = examples(
    "megaponder demo",
    "megaponder demo train-iters=100 output_dir=runs/short data.path=runs/short/data",
    "megaponder demo --fresh ponder.penalty_weight=0.06",
)


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
    """Go the whole way, small: raw text, tokens, training, evaluation, generation, report.

    The text is the source of this Python's standard library; nothing is downloaded. Prints a table and writes
    report.html into the folder of the run. What has not changed since the last time is not done again, and a
    training that was stopped goes on.
    """
    from pipeline.demo import open_demo, run_demo

    set_up_logging()
    prepared = open_demo(config, overrides or [], console=Console(), num_workers=workers, fresh=fresh)
    raise typer.Exit(run_demo(prepared))
