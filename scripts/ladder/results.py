"""What a ladder found: mean and spread over seeds, as a table and as plots."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD

from pipeline.metrics import names
from pipeline.metrics.jsonl import METRICS_FILE, TRAINING, VALIDATION, read_events
from pipeline.shared.tables import Table
from scripts.ladder.plan import Ladder
from scripts.ladder.run import RESULT_FILE

HEADINGS = (
    *(
        "part",
        "row",
        "lr",
        "seeds",
        "loss before",
        "loss, all steps",
        "- vanilla",
        "loss by steps 0..K",
        "steps at tau",
    ),
    *("MFLOPs at tau", "training TFLOPs", "seconds"),
)
# The row that all others of a part are compared with.
CONTROL = "vanilla"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """One row over its seeds.

    Attributes:
        part, row: names.
        learning_rate: the chosen one.
        loss_before: held-out loss before the first iteration, mean over seeds; None where nothing had been
            trained.
        losses: held-out loss of each seed, nats per token, with all steps.
        gains: the same minus the vanilla row of the part, paired by seed; empty where that has not run.
        losses_by_steps: mean over seeds with at most 0..K steps; empty where not measured.
        mean_steps: extra steps per token at the run's threshold, mean over seeds; None where tokens cannot
            halt.
        flops_per_token: of inference at the run's threshold, mean over seeds.
        training_flops: of the whole training, mean over seeds, the base not included.
        seconds: of training, mean.
    """

    part: str
    row: str
    learning_rate: float
    loss_before: float | None
    losses: Sequence[float]
    gains: Sequence[float]
    losses_by_steps: Sequence[float]
    mean_steps: float | None
    flops_per_token: float
    training_flops: float
    seconds: float

    def cells(self) -> tuple[str, ...]:
        """Return the cells of a table."""
        return (
            self.part,
            self.row,
            f"{self.learning_rate:g}",
            str(len(self.losses)),
            "" if self.loss_before is None else f"{self.loss_before:.4f}",
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
        rows = read_part(folder, ladder, part_name)
        control = rows.get(CONTROL, {})
        found += [_summary(part_name, row, runs, control) for row, runs in rows.items()]
    return found


def read_part(folder: Path, ladder: Ladder, part_name: str) -> dict[str, dict[int, "RunResult"]]:
    """Return the reported runs of a part that have ended, by row and seed; rows without any are left out."""
    rows = {}
    for row in ladder.part(part_name).rows:
        runs = read_row(folder / part_name / row, exclude_seed=ladder.tuning_seed)
        if runs:
            rows[row] = runs
    return rows


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
    def loss_before(self) -> float | None:
        """Held-out loss before the first iteration, nats per token; None: it was not measured."""
        for event in read_events(self.folder / METRICS_FILE):
            if event["event"] == VALIDATION:
                return float(event[names.LM_LOSS_VALIDATION]) if event["iteration"] == 0 else None
        return None

    @property
    def losses_by_steps(self) -> list[float]:
        """Held-out loss with at most 0..K steps, nats per token; empty where not measured."""
        return [float(point["loss"]) for point in self._sweep()]

    @property
    def costs_by_steps(self) -> dict[int, tuple[float, float]]:
        """Mean steps and FLOPs per token by the most steps that a token may take, as the run counted them."""
        evaluation = self.record["evaluation"]
        costs = {
            int(point["value"]): (float(point["mean-steps"]), float(point["flops-per-token"]))
            for point in self._sweep()
        }
        if names.MEAN_STEPS in evaluation:
            most = int(self.record["settings"].get("ponder.num_latent_thoughts", 0))
            costs[most] = (evaluation[names.MEAN_STEPS], evaluation[names.FLOPS_PER_TOKEN_INFER])
        return costs

    def _sweep(self) -> list[dict[str, Any]]:
        points = self.record["evaluation"].get(names.EVAL_SWEEP, [])
        return [point for point in points if point["kind"] == "steps"]

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
    before = [run.loss_before for run in runs.values()]
    steps = [evaluation[names.MEAN_STEPS] for evaluation in evaluations if names.MEAN_STEPS in evaluation]
    return RowResult(
        part=part,
        row=row,
        learning_rate=next(iter(runs.values())).record["settings"]["optimizer.lr"],
        loss_before=None if None in before else statistics.fmean(filter(None, before)),
        losses=[run.loss for run in runs.values()],
        gains=[runs[seed].loss - control[seed].loss for seed in paired],
        losses_by_steps=[statistics.fmean(losses) for losses in zip(*by_steps, strict=True)],
        mean_steps=statistics.fmean(steps) if steps else None,
        flops_per_token=statistics.fmean(one[names.FLOPS_PER_TOKEN_INFER] for one in evaluations),
        training_flops=statistics.fmean(run.training_flops() for run in runs.values()),
        seconds=statistics.fmean(run.record["seconds"] for run in runs.values()),
    )


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
    return render_cells([HEADINGS, *(row.cells() for row in rows)])


def render_cells(lines: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table of a line of headings and others."""
    headings, *others = lines
    rule = ("---",) * len(headings)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (headings, rule, *others))
