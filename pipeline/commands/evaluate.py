"""`megaponder eval`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD

from pipeline.commands.early_checks import check_checkpoint
from pipeline.commands.limit_options import BudgetOption, LimitOptions, MaxSteps, Threshold, spent_line
from pipeline.commands.shared import (
    Checkpoint,
    Iteration,
    OtherData,
    examples,
    set_up_logging,
    show_or_write_text,
    speaks,
)
from pipeline.commands.spellings import STANDARD_OUTPUT
from pipeline.evaluation.tasks import TASK_GROUPS
from pipeline.metrics.records import WORTH_NAMES, LossPoint
from pipeline.shared.console import open_console, say
from pipeline.shared.tables import Table

if TYPE_CHECKING:
    from pipeline.evaluation.results import EvaluationResult, SourceLoss

EPILOG = examples(
    "megaponder eval runs/demo/checkpoints",
    "megaponder eval runs/demo/checkpoints --jacobi-iterations 4 --iters 32",
    "megaponder eval runs/demo/checkpoints --budget 60%",
    "megaponder eval runs/pile/checkpoints --tasks papers-9 --num-fewshot 5",
    "megaponder eval runs/demo/checkpoints --tasks my_task --include-path tasks/ --limit 100",
    "torchrun --nproc-per-node 8 -m pipeline.cli eval runs/pile/checkpoints --tasks papers-7 "
    "--tensor-parallel 2",
)
_GROUPS_HELP = "; ".join(f"{name}: {', '.join(tasks)}" for name, tasks in TASK_GROUPS.items())
_OF_TASKS = "With --tasks: "

Tasks = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Run tasks of lm-evaluation-harness (the extra eval) instead: their names, groups, tags, or "
        f"files, separated by commas. {_GROUPS_HELP}.",
        show_default=False,
    ),
]
Iters = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Global batches of the held-out split, at most all; default: the run's evaluation.iters.",
        show_default=False,
    ),
]
JacobiIterations = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="J",
        help="Refinement sweeps on the held-out split; default: the run's.",
        show_default=False,
    ),
]
NumFewshot = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help=f"{_OF_TASKS}solved examples before a question; default: as each task says.",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help=f"{_OF_TASKS}questions of each task; default: all.", show_default=False
    ),
]
IncludePath = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help=f"{_OF_TASKS}a folder of further task files (YAML).", show_default=False
    ),
]
BatchSize = Annotated[
    int, typer.Option(min=1, metavar="N", help=f"{_OF_TASKS}texts that a replica reads together.")
]
TensorParallel = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Under torchrun, ranks that one model is split over; the others hold replicas, which share "
        "the work. Default: all ranks hold one model.",
        show_default=False,
    ),
]
ContextParallel = Annotated[
    int,
    typer.Option(
        min=1,
        metavar="C",
        help="Under torchrun, ranks that share the tokens of each held-out sequence, where sequences are too "
        "long for one. Nothing is decoded then: it needs --no-timing.",
    ),
]
Timing = Annotated[
    bool,
    typer.Option("--timing/--no-timing", help="Measure the time of decoding some of the held-out text."),
]
ResultFile = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Where the result goes; default: evaluation.json of the run; under limits its "
        "evaluation_under_limits.json; with --tasks its tasks.json; `-` prints it.",
        show_default=False,
    ),
]


def evaluate(
    checkpoint: Checkpoint,
    tasks: Tasks = None,
    iters: Iters = None,
    jacobi_iterations: JacobiIterations = None,
    max_steps: MaxSteps = None,
    threshold: Threshold = None,
    budget: BudgetOption = None,
    timing: Timing = True,
    iteration: Iteration = None,
    data: OtherData = None,
    num_fewshot: NumFewshot = None,
    limit: Limit = None,
    include_path: IncludePath = None,
    batch_size: BatchSize = 16,
    tensor_parallel: TensorParallel = None,
    context_parallel: ContextParallel = 1,
    json_file: ResultFile = None,
) -> None:
    """Measure loss and steps on the held-out text of the run's data, or the scores on public tasks.

    On held-out text: loss, perplexity and bits per byte of all text and of each source of a blend, and
    the unigram entropy; the steps that tokens take, their loss by steps, the residual of each sweep, and
    the time of decoding. With --threshold or --budget pruned steps are left out, as decoding does.

    With --tasks: the scores of lm-evaluation-harness, each with the steps that its tokens took and the
    operations they cost; pruned steps are not computed. Nothing is converted. See docs/evaluation.md.

    Under torchrun the model is split over all ranks, or as --tensor-parallel sets.
    """
    is_first = speaks()
    set_up_logging(speaks=is_first)
    limits = LimitOptions.read(max_steps=max_steps, threshold=threshold, budget=budget)
    if context_parallel > 1 and (timing or tasks is not None):
        raise typer.BadParameter(
            "is for held-out text without decoding; remove it, or "
            + ("add --no-timing" if tasks is None else "remove --tasks"),
            param_hint="--context-parallel",
        )
    if tasks is not None:
        if iters is not None or jacobi_iterations is not None:
            raise typer.BadParameter(
                "is for the held-out split; remove it: tasks are read until sweeps settle",
                param_hint="--iters" if iters is not None else "--jacobi-iterations",
            )
        from pipeline.commands.evaluate_tasks import TaskOptions, evaluate_tasks

        options = TaskOptions(
            names=tasks,
            num_fewshot=num_fewshot,
            limit=limit,
            include_path=include_path,
            batch_size=batch_size,
            limits=limits,
        )
        evaluate_tasks(
            checkpoint,
            options,
            iteration=iteration,
            tensor_parallel=tensor_parallel,
            data=data,
            json_file=json_file,
            speaks=is_first,
        )
        return

    check_checkpoint(checkpoint, iteration=iteration, data=data, reads_data=True)
    overrides = [] if jacobi_iterations is None else [f"ponder.num_jacobi_iterations={jacobi_iterations}"]
    result, default_file = _evaluate_heldout(
        checkpoint,
        iteration,
        overrides,
        limits=limits,
        iters=iters,
        tensor_parallel=tensor_parallel,
        context_parallel=context_parallel,
        timing=timing,
        data=data,
        prints=json_file == Path(STANDARD_OUTPUT),
    )
    if is_first:
        from pipeline.evaluation.results import json_text

        show_or_write_text(
            lambda: open_console().print(_table(result)), json_text(result), json_file or default_file
        )


def _evaluate_heldout(
    checkpoint: Path,
    iteration: int | None,
    overrides: list[str],
    *,
    limits: LimitOptions,
    iters: int | None,
    tensor_parallel: int | None,
    context_parallel: int,
    timing: bool,
    data: Path | None,
    prints: bool,
) -> tuple["EvaluationResult", Path]:
    """Return the result on held-out text, and the file it goes to by default.

    Args:
        prints: JSON on standard output, where nothing else may be.
    """
    from pipeline.evaluation.checkpoint import evaluate_checkpoint
    from pipeline.evaluation.opened import opened_checkpoint
    from pipeline.evaluation.results import EVALUATION_FILE, LIMITED_EVALUATION_FILE
    from pipeline.evaluation.timing import decoding_speeds
    from pipeline.evaluation.under_limits import HeldoutText
    from pipeline.evaluation.worth import worth_of_steps

    with opened_checkpoint(
        checkpoint,
        iteration=iteration,
        overrides=overrides,
        tensor_parallel=tensor_parallel,
        context_parallel=context_parallel,
        data=data,
    ) as opened:
        batches = iters or opened.config.evaluation.iters
        applied, met = limits.limits(opened, num_samples=batches * opened.config.training.global_batch_size)
        if met is not None and speaks():
            say(spent_line(met), err=prints)
        result = evaluate_checkpoint(
            opened, max_global_batches=batches, limits=applied, shows_progress=speaks()
        )
        worth: tuple[LossPoint, ...] = ()
        if result.is_of_whole_model:
            worth = worth_of_steps(HeldoutText(opened, batches), timing=timing)
        if worth:
            # Decoding without limits leaves out the steps below the run's threshold.
            _, above_threshold, _ = worth
            speeds = above_threshold.speeds
        else:
            speeds = decoding_speeds(opened, [applied])[0] if timing else ()
        budget = None if met is None else met.budget
        result = replace(result, speeds=speeds, budget=budget, worth=worth)
        file = EVALUATION_FILE if result.is_of_whole_model else LIMITED_EVALUATION_FILE
        return result, opened.config.output_dir / file


def _table(result: "EvaluationResult") -> Table:
    table = Table(title=f"{result.checkpoint}, {result.split}", box=SIMPLE_HEAD, show_header=False)
    table.add_row("loss", f"{result.loss:.4f} nats per token, perplexity {result.perplexity:.2f}")
    if result.bits_per_byte is not None:
        table.add_row("bits per byte", f"{result.bits_per_byte:.4f}")
    for source in result.sources if len(result.sources) > 1 else ():
        table.add_row(source.name, _of_source(source))
    table.add_row("unigram entropy", f"{result.unigram_entropy:.4f} nats per token")
    table.add_row("tokens", f"{result.num_tokens:,}")
    tokens = sum(result.steps_count)
    for steps, (count, nll) in enumerate(zip(result.steps_count, result.nll_by_steps, strict=True)):
        loss = "" if nll is None else f", loss {nll:.4f}"
        table.add_row(f"{steps} steps", f"{count / tokens:.1%} of the tokens{loss}")
    for name, point in zip(WORTH_NAMES, result.worth, strict=False):
        table.add_row(f"loss with {name}", f"{point.loss:.4f}; {point.cost}")
    for sweep, residual in enumerate(result.residuals, start=1):
        table.add_row(f"residual of sweep {sweep}", f"{residual:.3e}")
    table.add_row("speed", f"{result.tokens_per_second:,.0f} tokens/s")
    for speed in result.speeds:
        table.add_row(f"decoding {speed.batch_size} at once", speed.summary)
    return table


def _of_source(source: "SourceLoss") -> str:
    bits = "" if source.bits_per_byte is None else f", {source.bits_per_byte:.4f} bits per byte"
    loss = f"{source.loss:.4f} nats per token, perplexity {source.perplexity:.2f}"
    return f"{loss}{bits}, {source.num_tokens:,} tokens"
