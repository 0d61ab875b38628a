"""Runs side by side on the terminal and as JSON."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.evaluation.compare.curve import NOT_WRITTEN, PruningCurve, front
from pipeline.run.summary import metric


def labels_of(curves: Sequence[PruningCurve], folders: Sequence[Path]) -> list[str]:
    """Name runs by their names, or where two have the same one, by their folders."""
    names = [curve.name for curve in curves]
    if len(set(names)) == len(names):
        return names
    return [str(folder) for folder in folders]


def render_comparison(curves: Sequence[PruningCurve], labels: Sequence[str]) -> Table:
    """Return a table of all points; those on the front are marked."""
    best = front(point for curve in curves for point in curve.points)
    table = Table(title="held-out loss by inference cost", box=SIMPLE_HEAD)
    for column in ("run", "method", "tau", "steps", "loss", "perplexity", "FLOPs/token", "tokens", "front"):
        table.add_column(column, justify="left" if column in ("run", "method") else "right")
    for curve, label in zip(curves, labels, strict=True):
        for point in curve.points:
            threshold = "-" if point.pruning_threshold is None else f"{point.pruning_threshold:g}"
            table.add_row(
                label,
                curve.method,
                threshold,
                f"{point.mean_steps:.3f}",
                f"{point.loss:.4f}",
                f"{math.exp(point.loss):.2f}",
                metric(point.flops_per_token),
                f"{curve.num_tokens:,}",
                "*" if point in best else "",
            )
    return table


def comparison_values(curves: Sequence[PruningCurve], labels: Sequence[str]) -> dict[str, Any]:
    """Return a comparison as plain values."""
    best = front(point for curve in curves for point in curve.points)
    runs = []
    for curve, label in zip(curves, labels, strict=True):
        values = TypeAdapter(PruningCurve).dump_python(curve, mode="json", exclude=NOT_WRITTEN)
        for point, found in zip(values["points"], curve.points, strict=True):
            point["is_on_front"] = found in best
        runs.append({"label": label, **values})
    return {"format": "megaponder.comparison/1", "runs": runs}


def same_text(curves: Sequence[PruningCurve]) -> bool:
    """Whether the losses are of the same held-out text, judged by its entropy and length."""
    texts = {(round(curve.unigram_entropy, 9), curve.num_tokens) for curve in curves}
    return len(texts) == 1
