"""`megaponder verify`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.commands.early_checks import check_checkpoint
from pipeline.commands.shared import (
    Checkpoint,
    Iteration,
    OtherData,
    examples,
    set_up_logging,
    show_or_write_text,
    speaks,
)
from pipeline.shared.console import open_console
from pipeline.shared.exit_codes import ExitCode
from pipeline.shared.progress import open_bar

if TYPE_CHECKING:
    from pipeline.config.ponder_section import PonderSection

EPILOG = examples(
    "megaponder verify runs/demo/checkpoints",
    "megaponder verify runs/demo/checkpoints --rows 4 --tokens 64 --threshold 1e-4 --threshold 1e-2",
    "megaponder verify runs/demo/checkpoints --jacobi-iterations 2 --jacobi-iterations 32 --bound 1e-3",
    "torchrun --nproc-per-node 2 -m pipeline.cli verify runs/demo/checkpoints",
)

Rows = Annotated[int, typer.Option(min=1, metavar="N", help="Rows of held-out text.")]
Tokens = Annotated[
    int, typer.Option(min=1, metavar="N", help="Tokens of each row, at most training.seq_length.")
]
Threshold = Annotated[
    list[float] | None,
    typer.Option(
        min=0.0,
        max=1.0,
        metavar="TAU",
        help="Pruning thresholds to decode with, in addition to 1e-4; default: 1e-6, 1e-5, 1e-4, 1e-3, 0.01, "
        "0.1, 0.5.",
        show_default=False,
    ),
]
JacobiIterations = Annotated[
    list[int] | None,
    typer.Option(
        min=0,
        metavar="J",
        help="Sweeps of the forwards; default: 0, 1, 2, 4, 8, 16 and the run's own.",
        show_default=False,
    ),
]
Bound = Annotated[
    float,
    typer.Option(
        min=0.0,
        metavar="X",
        help="Largest difference of any logit that passes, at tau 1e-4 and the most sweeps.",
    ),
]
RunBound = Annotated[
    float | None,
    typer.Option(
        min=0.0,
        metavar="X",
        help="Judge the forward with the run's own number of sweeps too, by this bound.",
        show_default=False,
    ),
]
Precision = Annotated[
    Literal["fp32", "run"],
    typer.Option(help="Compute in float32, which rules out rounding as a cause, or as the run does."),
]
ResultFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Where the result goes; default: verification.json of the run; `-` prints it.",
        show_default=False,
    ),
]


def verify(
    checkpoint: Checkpoint,
    rows: Rows = 8,
    tokens: Tokens = 128,
    threshold: Threshold = None,
    jacobi_iterations: JacobiIterations = None,
    bound: Bound = 0.01,
    run_bound: RunBound = None,
    precision: Precision = "fp32",
    iteration: Iteration = None,
    data: OtherData = None,
    json_file: ResultFile = None,
) -> None:
    """Check that training and inference are the same model: soft-masked forward against hard-pruned decoding.

    Both read the same held-out text; every logit of every token is compared, for forwards of several numbers
    of Jacobi sweeps and decodings of several pruning thresholds. Exit code 1: at threshold 1e-4 and the most
    sweeps some logit differs by more than the bound. With the default bound of 0.01 no probability differs by
    more than a factor exp(0.02); pruning accounts for about 5e-4 or less, a wrong mask, position or cached
    key moves logits by 0.1 and more. Methods that do not halt are compared over sweeps, or once. Under
    torchrun the model is split over all ranks.
    """
    is_first = speaks()
    set_up_logging(speaks=is_first)
    check_checkpoint(checkpoint, iteration=iteration, data=data, reads_data=True)

    from pipeline.evaluation.opened import opened_checkpoint
    from pipeline.verification.checkpoint import num_parts, verify_checkpoint
    from pipeline.verification.result import VERIFICATION_FILE, verification_text
    from pipeline.verification.table import render_verdict, render_verification
    from pipeline.verification.verify import sweeps_for, thresholds_for

    overrides = ["training.precision=fp32"] if precision == "fp32" else []
    with opened_checkpoint(checkpoint, iteration=iteration, overrides=overrides, data=data) as opened:
        ponder = opened.config.ponder
        _refuse_unused(ponder, threshold=threshold, jacobi_iterations=jacobi_iterations, run_bound=run_bound)
        thresholds = thresholds_for(ponder.method, threshold or ())
        sweeps = sweeps_for(ponder.method, ponder.num_jacobi_iterations, jacobi_iterations or ())
        parts = num_parts(opened, num_rows=rows, num_thresholds=len(thresholds))
        with open_bar("decoding", total=parts, speaks=is_first) as bar:
            result = verify_checkpoint(
                opened,
                num_rows=rows,
                num_tokens=tokens,
                thresholds=thresholds,
                sweeps=sweeps,
                bound=bound,
                run_bound=run_bound,
                advance=bar.advance,
            )
        default_file = opened.config.output_dir / VERIFICATION_FILE
    if is_first:

        def show() -> None:
            console = open_console()
            for table in render_verification(result):
                console.print(table)
            console.print(render_verdict(result), soft_wrap=True, highlight=False)

        show_or_write_text(show, verification_text(result), json_file or default_file)
    raise typer.Exit(ExitCode.DONE if result.passes else ExitCode.CRASH)


def _refuse_unused(
    ponder: "PonderSection",
    *,
    threshold: Sequence[float] | None,
    jacobi_iterations: Sequence[int] | None,
    run_bound: float | None,
) -> None:
    """Refuse options that the method has no use for, or that leave nothing to judge.

    Raises:
        typer.BadParameter: naming the option.
    """
    method = ponder.method
    if threshold and not method.halts:
        raise typer.BadParameter(
            f"is for methods that halt, but the run is one of {method}; remove it",
            param_hint="--threshold",
        )
    if not method.has_sweeps and (jacobi_iterations or run_bound is not None):
        raise typer.BadParameter(
            f"is for methods with Jacobi sweeps, but the run is one of {method}; remove it",
            param_hint="--jacobi-iterations" if jacobi_iterations else "--run-bound",
        )
    run_sweeps = ponder.num_jacobi_iterations
    if run_bound is not None and jacobi_iterations and run_sweeps not in jacobi_iterations:
        raise typer.BadParameter(
            f"judges the run's own {run_sweeps} sweeps, but they are not tried; "
            f"add --jacobi-iterations {run_sweeps}",
            param_hint="--run-bound",
        )
