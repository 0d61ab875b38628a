"""What a ladder found: mean and spread over seeds, as a table and as plots."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD

from pipeline.evaluation.compare.curve import CURVE_FILE, PruningCurve, load_curve
from pipeline.metrics import names
from pipeline.metrics.jsonl import METRICS_FILE, TRAINING, read_events
from pipeline.shared.tables import Table
from scripts.ladder.plan import Ladder
from scripts.ladder.run import RESULT_FILE

HEADINGS = (
    *("part", "row", "lr", "seeds", "loss, all steps", "- vanilla", "loss by steps 0..K", "steps at tau"),
    *("MFLOPs at tau", "training TFLOPs", "seconds"),
)
# Shares of the inference FLOPs of all steps.
BUDGETS = ("50%", "60%", "70%", "80%", "90%")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """One row over its seeds.

    Attributes:
        part, row: names.
        learning_rate: the chosen one.
        losses: held-out loss of each seed, nats per token, with all steps.
        gains: the same minus the vanilla row of the part, paired by seed; empty where that has not run.
        losses_by_steps: mean over seeds with at most 0..K steps; empty where not measured.
        mean_steps: extra steps per token at the run's threshold, mean over seeds; None where tokens cannot
            halt.
        flops_per_token: of inference at the run's threshold, mean over seeds.
        training_flops: of the whole training, mean over seeds, the base not included.
        seconds: of training, mean.
        curves: loss under limits on the steps, one of each seed that `measure` has measured.
    """

    part: str
    row: str
    learning_rate: float
    losses: Sequence[float]
    gains: Sequence[float]
    losses_by_steps: Sequence[float]
    mean_steps: float | None
    flops_per_token: float
    training_flops: float
    seconds: float
    curves: Sequence[PruningCurve]

    def cells(self) -> tuple[str, ...]:
        """Return the cells of a table."""
        return (
            self.part,
            self.row,
            f"{self.learning_rate:g}",
            str(len(self.losses)),
            mean_and_spread(self.losses),
            mean_and_spread(self.gains, sign="+") if self.gains else "",
            " / ".join(f"{loss:.4f}" for loss in self.losses_by_steps),
            "" if self.mean_steps is None else f"{self.mean_steps:.2f}",
            f"{self.flops_per_token / 1e6:.2f}",
            f"{self.training_flops / 1e12:.2f}",
            f"{self.seconds:.0f}",
        )


def collect(folder: Path, ladder: Ladder) -> list[RowResult]:
    """Read the reported runs of a ladder: those at the learning rate that was chosen.

    Args:
        folder: of the ladder, with one folder per part.
        ladder: its rows.
    """
    found = []
    for part_name in ([] if ladder.base is None else ["base"]) + ladder.part_names():
        rows: dict[str, dict[int, RunResult]] = {}
        for row in ladder.part(part_name).rows:
            runs = read_row(folder / part_name / row, exclude_seed=ladder.tuning_seed)
            if runs:
                rows[row] = runs
        control = rows.get("vanilla", {})
        found += [_summary(part_name, row, runs, control) for row, runs in rows.items()]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One run that has ended: its folder and the content of its record."""

    folder: Path
    record: dict[str, Any]

    @property
    def loss(self) -> float:
        """Held-out loss with all steps, nats per token."""
        return float(self.record["evaluation"][names.LM_LOSS_VALIDATION])

    @property
    def losses_by_steps(self) -> list[float]:
        """Held-out loss with at most 0..K steps, nats per token; empty where not measured."""
        points = self.record["evaluation"].get(names.EVAL_SWEEP, [])
        return [float(point["loss"]) for point in points if point["kind"] == "steps"]

    def training_flops(self) -> float:
        """Return what the training cost, as its steps reported it."""
        events = [event for event in read_events(self.folder / METRICS_FILE) if event["event"] == TRAINING]
        total, before = 0.0, 0
        for event in events:
            tokens = (
                event[names.TOKENS_PER_SECOND] * event[names.ITERATION_TIME] * (event["iteration"] - before)
            )
            total += event[names.FLOPS_PER_TOKEN_TRAIN] * tokens
            before = event["iteration"]
        return total


def read_row(folder: Path, *, exclude_seed: int) -> dict[int, RunResult]:
    """Return a row's reported runs that have ended, by seed."""
    results = {}
    for path in sorted(folder.glob(f"*/*/{RESULT_FILE}")):
        record = json.loads(path.read_text(encoding="utf-8"))
        seed = record["settings"]["seed"]
        if seed != exclude_seed:
            results[seed] = RunResult(folder=path.parent, record=record)
    return results


def _summary(part: str, row: str, runs: dict[int, RunResult], control: dict[int, RunResult]) -> RowResult:
    paired = [seed for seed in runs if seed in control] if runs is not control else []
    evaluations = [run.record["evaluation"] for run in runs.values()]
    by_steps = [run.losses_by_steps for run in runs.values()]
    steps = [evaluation[names.MEAN_STEPS] for evaluation in evaluations if names.MEAN_STEPS in evaluation]
    curves = [run.folder / CURVE_FILE for run in runs.values()]
    return RowResult(
        part=part,
        row=row,
        learning_rate=next(iter(runs.values())).record["settings"]["optimizer.lr"],
        losses=[run.loss for run in runs.values()],
        gains=[runs[seed].loss - control[seed].loss for seed in paired],
        losses_by_steps=[statistics.fmean(losses) for losses in zip(*by_steps, strict=True)],
        mean_steps=statistics.fmean(steps) if steps else None,
        flops_per_token=statistics.fmean(one[names.FLOPS_PER_TOKEN_INFER] for one in evaluations),
        training_flops=statistics.fmean(run.training_flops() for run in runs.values()),
        seconds=statistics.fmean(run.record["seconds"] for run in runs.values()),
        curves=[load_curve(path) for path in curves if path.is_file()],
    )


def compare_words(run: Path, *, timing: bool) -> list[str]:
    """Return the command that measures a run under limits on its steps, for all rows at the same budgets."""
    recorded = json.loads((run / RESULT_FILE).read_text(encoding="utf-8"))["settings"]
    num_thoughts = recorded.get("ponder.num_latent_thoughts", 0)
    # With K as a limit the curve of fixed numbers of steps ends at all steps.
    limits = (
        [word for steps in range(num_thoughts + 1) for word in ("--max-steps", str(steps))]
        if num_thoughts
        else []
    )
    budgets = [word for budget in BUDGETS for word in ("--budget", budget)] if num_thoughts else []
    timed = "--timing" if timing else "--no-timing"
    return ["compare", str(run), *limits, *budgets, timed, "--output", str(run / "compare.png")]


def mean_and_spread(values: Sequence[float], *, sign: str = "") -> str:
    """Return the mean, with the standard deviation over seeds where there are several."""
    mean = format(statistics.fmean(values), f"{sign}.4f")
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.4f}"


def render_table(rows: Iterable[RowResult]) -> Table:
    """Return the rows for a terminal."""
    table = Table(*HEADINGS, box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row.cells())
    return table


def render_markdown(rows: Iterable[RowResult]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEADINGS, ("---",) * len(HEADINGS), *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
