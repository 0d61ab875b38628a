"""`megaponder compare`."""

import logging
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.commands.early_checks import check_checkpoint
from pipeline.commands.limit_options import parse_budget
from pipeline.commands.shared import JsonFile, examples, set_up_logging, show_or_write, speaks
from pipeline.commands.spellings import STANDARD_OUTPUT
from pipeline.shared.console import open_console, say
from pipeline.shared.progress import open_bar

logger = logging.getLogger(__name__)

PLOT_FILE = "compare.png"

EPILOG = examples(
    "megaponder compare runs/vanilla runs/ponderlm2 runs/ponderlm3",
    "megaponder compare runs/ponderlm3 runs/adaponderlm --threshold 1e-4 --threshold 0.1 -o pareto.png",
    "megaponder compare runs/ponderlm3 --budget 1 --budget 60% --max-steps 1 --baseline convergence",
    "megaponder compare runs/* --iters 32 --json compare.json",
)

Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Folders of runs; the newest checkpoint of each is taken."),
]
Threshold = Annotated[
    list[float] | None,
    typer.Option(
        min=0.0,
        max=1.0,
        metavar="TAU",
        help="Pruning thresholds, any number; default: 1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.5 and the "
        "run's own.",
        show_default=False,
    ),
]
MaxSteps = Annotated[
    list[int] | None,
    typer.Option(
        min=0,
        metavar="K",
        help="Also evaluate with at most K steps per token, any number; more than in training where the "
        "method allows it.",
        show_default=False,
    ),
]
BudgetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="X",
        help="Also evaluate at the threshold that spends X: mean steps per token (1.5), or a share of the "
        "operations of all steps (60%); any number.",
        show_default=False,
    ),
]
Baseline = Annotated[
    Literal["entropy", "confidence", "convergence", "none"],
    typer.Option(
        help="What a decoder halts by that was not trained to, beside the learned router: entropy or "
        "confidence of step 0, or when thoughts stop moving; for ponderlm2 and ponderlm3, at the budgets, or "
        "at quarters of the steps.",
    ),
]
Timing = Annotated[
    bool, typer.Option("--timing/--no-timing", help="Measure the time of decoding at every point.")
]
Iters = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Global batches of the held-out split; default: evaluation.iters of each run.",
        show_default=False,
    ),
]
Reevaluate = Annotated[
    bool, typer.Option("--reevaluate", help="Evaluate again, even if the run has the figures.")
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The plot, a PNG; default: compare.png in the first run.",
        show_default=False,
    ),
]


def compare(
    runs: Runs,
    threshold: Threshold = None,
    max_steps: MaxSteps = None,
    budget: BudgetOption = None,
    baseline: Baseline = "entropy",
    timing: Timing = True,
    iters: Iters = None,
    reevaluate: Reevaluate = False,
    output: Output = None,
    json_file: JsonFile = None,
) -> None:
    """Compare runs by held-out loss against inference FLOPs and time per token.

    Methods that halt are evaluated with hard pruning at every threshold; the others have one point. Beside
    them stands halting that needs no training. Some tokens are decoded, 1 and 8 texts together, to show the
    time next to the FLOPs, and which share of the FLOPs saved, against all steps, is saved in time. Figures
    are taken from pruning_curve.json of a run, which this command writes, or for methods that do not halt
    from evaluation.json of `megaponder eval`; where neither fits the newest checkpoint, it is evaluated now.
    The log reports which. Losses are comparable only on the same held-out text; a warning reports where they
    are not. Under torchrun models are split over all ranks.
    """
    is_first = speaks()
    set_up_logging(speaks=is_first)
    for path in runs:
        check_checkpoint(path, iteration=None, reads_data=False)

    from megatron_ext.ponder.step_limits import HaltingSignal
    from pipeline.evaluation.compare.measure import Wanted, curve_of, find_run, problem_of
    from pipeline.evaluation.compare.table import comparison_values, labels_of, render_comparison, same_text
    from pipeline.report.comparison import render_comparison_png
    from pipeline.shared.files import write_atomically

    wanted = Wanted(
        thresholds=tuple(threshold or ()),
        max_steps=tuple(dict.fromkeys(max_steps or ())),
        budgets=tuple(dict.fromkeys(parse_budget(one) for one in budget or ())),
        signal=None if baseline == "none" else HaltingSignal(baseline),
        num_global_batches=iters,
        reevaluate=reevaluate,
        timing=timing,
    )
    found = [find_run(path) for path in runs]
    for run, number in product(found, wanted.max_steps):
        problem = problem_of(number, run.config)
        if problem is not None:
            logger.warning("%s: --max-steps %d is left out: %s", run.folder, number, problem)
    curves = []
    for run in found:
        total = len(wanted.points_of(run.config)) + len(wanted.baseline_of(run.config))
        with open_bar(f"evaluating {run.folder.name}", total=total, speaks=is_first) as bar:
            curves.append(curve_of(run, wanted, speaks=is_first, advance=bar.advance))
    if not is_first:
        return
    labels = labels_of(curves, runs)
    show_or_write(
        lambda: open_console().print(render_comparison(curves, labels)),
        comparison_values(curves, labels),
        json_file,
    )
    if not same_text(curves):
        say("warning: the held-out texts differ; their losses cannot be compared", err=True)
    plot = output or found[0].folder / PLOT_FILE
    write_atomically(plot, render_comparison_png(curves, labels))
    say(f"written to {plot}", err=json_file == Path(STANDARD_OUTPUT))
