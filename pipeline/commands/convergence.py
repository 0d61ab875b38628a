"""`megaponder convergence`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.commands.early_checks import check_checkpoint
from pipeline.commands.shared import (
    Checkpoint,
    Iteration,
    JsonFile,
    OtherData,
    examples,
    set_up_logging,
    show_or_write_text,
    speaks,
)
from pipeline.commands.spellings import STANDARD_OUTPUT
from pipeline.shared.console import open_console, say
from pipeline.shared.progress import open_bar

EPILOG = examples(
    "megaponder convergence runs/demo/checkpoints",
    "megaponder convergence runs/demo/checkpoints --sweeps 32 --tokens 256 --json convergence.json",
    "torchrun --nproc-per-node 2 -m pipeline.cli convergence runs/pile/checkpoints",
)

Rows = Annotated[int, typer.Option(min=1, metavar="N", help="Rows of held-out text.")]
Tokens = Annotated[
    int, typer.Option(min=2, metavar="N", help="Tokens of each row, at most training.seq_length.")
]
NumSweeps = Annotated[int, typer.Option("--sweeps", min=2, metavar="J", help="Sweeps that are measured.")]
Tolerance = Annotated[
    list[float] | None,
    typer.Option(
        min=0.0,
        metavar="X",
        help="Tolerances of the residual, of which the sweeps are told; default: 0.01, 1e-3, 1e-4, 1e-5.",
        show_default=False,
    ),
]
ReadingTolerance = Annotated[
    float,
    typer.Option(min=0.0, metavar="X", help="Tolerance at which ways to read prompts are compared."),
]
Precision = Annotated[
    Literal["fp32", "run"],
    typer.Option(help="Compute in float32, in which small residuals show, or as the run does."),
]
Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", metavar="FILE", help="Plot the residuals, a PNG.", show_default=False),
]


def convergence(
    checkpoint: Checkpoint,
    rows: Rows = 8,
    tokens: Tokens = 128,
    sweeps: NumSweeps = 12,
    tolerance: Tolerance = None,
    reading_tolerance: ReadingTolerance = 1e-5,
    precision: Precision = "fp32",
    iteration: Iteration = None,
    data: OtherData = None,
    json_file: JsonFile = None,
    output: Output = None,
) -> None:
    """Show how fast the Jacobi sweeps of a model converge, on held-out text.

    Residual by sweep and position, with the fitted contraction; sweeps that tolerances need; loss and exact
    first tokens by number of sweeps, against decoding token by token; passes and time of reading prompts by
    Jacobi, damped and Gauss-Seidel sweeps. For ponderlm2 and ponderlm3. See docs/convergence.md.
    """
    is_first = speaks()
    set_up_logging(speaks=is_first)
    check_checkpoint(checkpoint, iteration=iteration, data=data, reads_data=True)

    from pipeline.evaluation.convergence.measure import (
        ConvergenceSettings,
        default_forwards,
        measure_convergence,
        num_parts,
    )
    from pipeline.evaluation.convergence.readings import WAYS
    from pipeline.evaluation.convergence.result import convergence_text
    from pipeline.evaluation.convergence.table import render_convergence
    from pipeline.evaluation.opened import opened_checkpoint

    overrides = ["training.precision=fp32"] if precision == "fp32" else []
    with opened_checkpoint(checkpoint, iteration=iteration, overrides=overrides, data=data) as opened:
        ponder = opened.config.ponder
        if not ponder.method.has_sweeps or ponder.num_latent_thoughts == 0:
            raise typer.BadParameter(
                f"must be of a method with sweeps and latent thoughts, but is one of {ponder.method} with "
                f"{ponder.num_latent_thoughts}; there is nothing to converge",
                param_hint="CHECKPOINT",
            )
        settings = ConvergenceSettings(
            num_rows=rows,
            num_tokens=tokens,
            num_sweeps=sweeps,
            forwards=tuple(default_forwards(ponder.num_jacobi_iterations, sweeps)),
            tolerances=tuple(sorted(set(tolerance or (1e-2, 1e-3, 1e-4, 1e-5)), reverse=True)),
            reading_tolerance=reading_tolerance,
        )
        with open_bar("sweeping", total=num_parts(opened, settings, len(WAYS)), speaks=is_first) as bar:
            found = measure_convergence(opened, settings, advance=bar.advance)
    if not is_first:
        return

    def show() -> None:
        console = open_console()
        for table in render_convergence(found):
            console.print(table)

    show_or_write_text(show, convergence_text(found), json_file)
    if output is not None:
        from pipeline.report.convergence import render_convergence_png
        from pipeline.shared.files import write_atomically

        write_atomically(output, render_convergence_png(found))
        say(f"written to {output}", err=json_file == Path(STANDARD_OUTPUT))
