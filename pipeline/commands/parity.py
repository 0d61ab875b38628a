"""`megaponder parity`."""

from typing import Annotated

import typer

from pipeline.commands.shared import ConfigFile, JsonFile, Overrides, examples, set_up_logging

EPILOG = examples(
    "megaponder parity --config run.yaml --layout tensor=2,pipeline=2",
    "megaponder parity --config run.yaml --layout tensor=2,data=2 --steps 20 training.precision=fp32",
    "megaponder parity --config run.yaml --json parity.json",
)

Layout = Annotated[
    str | None,
    typer.Option(
        metavar="AXES",
        help="Sizes of the axes, by the names of the settings: tensor=2,pipeline=2,data=1, "
        "sequence_parallel=true; one that is not named has size 1. Default: the run's own layout.",
        show_default=False,
    ),
]
Steps = Annotated[int, typer.Option(min=1, metavar="N", help="Training steps to compare.")]


def parity(
    config: ConfigFile,
    overrides: Overrides = None,
    layout: Layout = None,
    steps: Steps = 5,
    json_file: JsonFile = None,
) -> None:
    """Check that a parallel layout trains as one process does: is this difference normal?

    Trains the first steps of the run twice on this machine, with the same seed and data: on one process, then
    on as many ranks as the layout has. Shows loss and gradient norm of both in each step, their difference,
    and whether rounding explains it. One process must be able to hold the model. Nothing is saved.

    The band of bf16 is wide; training.precision=fp32 separates rounding from mistakes far better.

    Exit code 0: every difference is inside the band of the run's precision; 1: one is not, or ranks failed.
    """
    from pipeline.verification.parity.command import run_parity

    set_up_logging()
    raise typer.Exit(
        run_parity(config, layout, num_steps=steps, overrides=overrides or [], json_file=json_file)
    )
