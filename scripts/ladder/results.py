"""What a ladder found: mean and spread over seeds, as a table."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.metrics import names
from scripts.ladder.plan import Ladder
from scripts.ladder.run import RESULT_FILE

HEADINGS = ("part", "row", "lr", "seeds", "held-out loss", "- vanilla", "loss by steps 0..K", "seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """One row over its seeds.

    Attributes:
        part, row: names.
        learning_rate: the chosen one.
        losses: held-out loss of each seed, nats per token, with all steps.
        gains: the same minus the vanilla row of the part, paired by seed; empty where that has not run.
        losses_by_steps: mean over seeds with at most 0..K steps; empty where not measured.
        seconds: of training, mean.
    """

    part: str
    row: str
    learning_rate: float
    losses: Sequence[float]
    gains: Sequence[float]
    losses_by_steps: Sequence[float]
    seconds: float

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
        rows: dict[str, dict[int, dict[str, Any]]] = {}
        for row in ladder.part(part_name).rows:
            records = read_row(folder / part_name / row, exclude_seed=ladder.tuning_seed)
            if records:
                rows[row] = records
        control = rows.get("vanilla", {})
        found += [_summary(part_name, row, records, control) for row, records in rows.items()]
    return found


def read_row(folder: Path, *, exclude_seed: int) -> dict[int, dict[str, Any]]:
    """Return the records of a row's reported runs by seed."""
    records = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(f"*/*/{RESULT_FILE}"))
    ]
    return {
        record["settings"]["seed"]: record for record in records if record["settings"]["seed"] != exclude_seed
    }


def _summary(
    part: str, row: str, records: dict[int, dict[str, Any]], control: dict[int, dict[str, Any]]
) -> RowResult:
    paired = [seed for seed in records if seed in control] if records is not control else []
    by_steps = [_losses_by_steps(record["evaluation"]) for record in records.values()]
    return RowResult(
        part=part,
        row=row,
        learning_rate=next(iter(records.values()))["settings"]["optimizer.lr"],
        losses=[_loss(record) for record in records.values()],
        gains=[_loss(records[seed]) - _loss(control[seed]) for seed in paired],
        losses_by_steps=[statistics.fmean(losses) for losses in zip(*by_steps, strict=True)],
        seconds=statistics.fmean(record["seconds"] for record in records.values()),
    )


def _loss(record: dict[str, Any]) -> float:
    return float(record["evaluation"][names.LM_LOSS_VALIDATION])


def _losses_by_steps(evaluation: dict[str, Any]) -> list[float]:
    points = evaluation.get(names.EVAL_SWEEP, [])
    return [float(point["loss"]) for point in points if point.get("step_limit") is not None]


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
