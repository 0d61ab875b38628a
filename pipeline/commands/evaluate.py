"""`megaponder eval`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pipeline.commands.checkpoint_argument import Checkpoint, Iteration, speaks
from pipeline.commands.shared import examples, set_up_logging

if TYPE_CHECKING:
    from pipeline.report.inputs import EvaluationResult

EPILOG = examples(
    "megaponder eval runs/demo/checkpoints",
    "megaponder eval runs/demo/checkpoints --jacobi-iterations 4 --iters 32",
)


def evaluate(
    checkpoint: Checkpoint,
    iters: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Global batches of the split, at most all; default: the run's evaluation.iters.",
            show_default=False,
        ),
    ] = None,
    jacobi_iterations: Annotated[
        int | None,
        typer.Option(min=0, metavar="J", help="Refinement sweeps; default: the run's.", show_default=False),
    ] = None,
    iteration: Iteration = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Default: evaluation.json of the run.", show_default=False
        ),
    ] = None,
) -> None:
    """Measure loss and steps on the held-out text of the run's data.

    Shows the loss beside the unigram entropy, the steps that tokens take, their loss by steps, and the Jacobi
    residual of each sweep. Under torchrun the model is split over all ranks.
    """
    is_first = speaks()
    set_up_logging(speaks=is_first)

    from pipeline.evaluate_checkpoint import evaluate_checkpoint
    from pipeline.inference import opened_checkpoint
    from pipeline.report.inputs import EVALUATION_FILE, save_json

    overrides = [] if jacobi_iterations is None else [f"ponder.num_jacobi_iterations={jacobi_iterations}"]
    with opened_checkpoint(checkpoint, iteration=iteration, overrides=overrides) as opened:
        result = evaluate_checkpoint(opened, max_global_batches=iters or opened.config.evaluation.iters)
        default_output = opened.config.output_dir / EVALUATION_FILE
    if not is_first:
        return
    Console().print(_table(result))
    save_json(result, output or default_output)
    typer.echo(f"written to {output or default_output}")


def _table(result: "EvaluationResult") -> Table:
    table = Table(title=f"{result.checkpoint}, {result.split}", box=SIMPLE_HEAD, show_header=False)
    table.add_row("loss", f"{result.loss:.4f} nats per token, perplexity {result.perplexity:.2f}")
    table.add_row("unigram entropy", f"{result.unigram_entropy:.4f} nats per token")
    table.add_row("tokens", f"{result.num_tokens:,}")
    tokens = sum(result.steps_count)
    for steps, (count, nll) in enumerate(zip(result.steps_count, result.nll_by_steps, strict=True)):
        loss = "" if nll is None else f", loss {nll:.4f}"
        table.add_row(f"{steps} steps", f"{count / tokens:.1%} of the tokens{loss}")
    for sweep, residual in enumerate(result.residuals, start=1):
        table.add_row(f"residual of sweep {sweep}", f"{residual:.3e}")
    table.add_row("speed", f"{result.tokens_per_second:,.0f} tokens/s")
    return table
