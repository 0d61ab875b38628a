"""Runs side by side on the terminal and as JSON."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich.box import SIMPLE_HEAD

from pipeline.evaluation.compare.curve import PruningCurve, front
from pipeline.metrics.records import LossPoint
from pipeline.shared.tables import Table
from pipeline.shared.units import metric


def labels_of(curves: Sequence[PruningCurve], folders: Sequence[Path]) -> list[str]:
    """Name runs by their names, or where two have the same one, by their folders."""
    names = [curve.name for curve in curves]
    if len(set(names)) == len(names):
        return names
    return [str(folder) for folder in folders]


def render_comparison(curves: Sequence[PruningCurve], labels: Sequence[str]) -> Table:
    """Return a table of all points; those on the front are marked."""
    points = [point for curve in curves for point in curve.all_points]
    sizes = sorted({speed.batch_size for point in points for speed in point.speeds})
    best = front(points)
    title = "held-out loss by inference cost"
    if sizes:
        title += "; ms xN: per token, N texts together; gain: time saved per FLOPs saved"
    times = [f"ms x{size}" for size in sizes] + (["gain"] if sizes else [])
    table = Table(title=title, box=SIMPLE_HEAD, optional=("method", *reversed(times)))
    for column in ("run", "method", "limit", "steps", "loss", "FLOPs/token", *times, "front"):
        is_text = column in ("run", "method", "limit")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=column == "limit")
    for curve, label in zip(curves, labels, strict=True):
        for point in curve.all_points:
            table.add_row(
                label,
                curve.method,
                limit_of(point),
                f"{point.mean_steps:.3f}",
                f"{point.loss:.4f}",
                metric(point.flops_per_token),
                *_times(point, sizes),
                "*" if point in best else "",
            )
    return table


def limit_of(point: LossPoint) -> str:
    """Name the limit of a point: a threshold, a signal, a number of steps, a budget."""
    parts = []
    if point.step_limit is not None:
        parts.append(f"{point.step_limit} steps")
    if point.pruning_threshold is not None:
        parts.append(f"{point.signal or 'tau'} {point.pruning_threshold:.3g}")
    if point.budget is not None:
        parts.append(f"for {point.budget}")
    return " ".join(parts) or "-"


def _times(point: LossPoint, sizes: Sequence[int]) -> list[str]:
    """Milliseconds by batch size, and the share of the gain that was reached at the largest one."""
    if not sizes:
        return []
    by_size = {speed.batch_size: speed for speed in point.speeds}
    largest = by_size.get(sizes[-1])
    return [
        *(f"{by_size[size].milliseconds_per_token:.2f}" if size in by_size else "" for size in sizes),
        "" if largest is None else largest.gain,
    ]


def comparison_values(curves: Sequence[PruningCurve], labels: Sequence[str]) -> dict[str, Any]:
    """Return a comparison as plain values."""
    best = front(point for curve in curves for point in curve.all_points)
    runs = []
    for curve, label in zip(curves, labels, strict=True):
        values = TypeAdapter(PruningCurve).dump_python(curve, mode="json")
        pairs = zip([*values["points"], *values["baseline"]], curve.all_points, strict=True)
        for point, found in pairs:
            point["is_on_front"] = found in best
        runs.append({"label": label, **values})
    return {"format": "megaponder.comparison/1", "runs": runs}


def same_text(curves: Sequence[PruningCurve]) -> bool:
    """Whether the losses are of the same held-out text, judged by its entropy and length."""
    texts = {(round(curve.unigram_entropy, 9), curve.num_tokens) for curve in curves}
    return len(texts) == 1
