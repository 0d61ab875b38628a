"""The plots of a ladder: held-out loss against what a token costs, with the spread over seeds."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from pipeline.metrics.records import LossPoint
from pipeline.report.colors import LIGHT, NUM_CURVE_COLORS, curve_role
from pipeline.report.style import render_png, styled_axes
from scripts.ladder.results import RowResult

SIZE = (720.0, 450.0)
MARKERS = "os^vDP*X"


class Limit(StrEnum):
    """What keeps a token from taking all steps."""

    ROUTER = "learned halting"
    BASELINE = "halting without training"
    FIXED = "the same number of steps for all tokens"


_STYLES = {Limit.ROUTER: "solid", Limit.BASELINE: "dashed", Limit.FIXED: "dotted"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanPoint:
    """A point over seeds.

    Attributes:
        cost: mean.
        loss: mean, nats per token.
        spread: standard deviation of the loss; 0 for one seed.
    """

    cost: float
    loss: float
    spread: float


def flops_of(point: LossPoint) -> float | None:
    """Return the inference FLOPs per token of a point."""
    return point.flops_per_token


def milliseconds_of(point: LossPoint) -> float | None:
    """Return the measured milliseconds per token of one text alone, or None where it was not timed."""
    alone = [speed.milliseconds_per_token for speed in point.speeds if speed.batch_size == 1]
    return alone[0] if alone else None


def render_training_png(rows: Sequence[RowResult]) -> bytes:
    """Draw the loss of each row against the FLOPs of its training."""
    with styled_axes(SIZE, LIGHT.__getitem__) as axes:
        for number, row in enumerate(rows):
            point = mean_point([row.training_flops] * len(row.losses), row.losses)
            _draw(axes, [point], number, label=row.row, linestyle="none")
        return _finished(axes, "training FLOPs", "held-out loss by cost of training")


def render_inference_png(
    rows: Sequence[RowResult], cost_of: Callable[[LossPoint], float | None], label: str
) -> bytes:
    """Draw the loss of each row against what a token costs, under each kind of limit on its steps.

    Args:
        rows: of one part; those without curves are left out.
        cost_of: a point's cost; points without one are left out.
        label: of the axis of costs.
    """
    with styled_axes(SIZE, LIGHT.__getitem__) as axes:
        for number, row in enumerate(rows):
            shown = row.row
            for limit, linestyle in _STYLES.items():
                points = mean_curve(row, limit, cost_of)
                if points:
                    _draw(axes, points, number, label=shown, linestyle=linestyle)
                    shown = ""
        title = "held-out loss by cost of a token\n" + ", ".join(
            f"{style}: {limit}" for limit, style in _STYLES.items()
        )
        return _finished(axes, label, title)


def mean_curve(row: RowResult, limit: Limit, cost_of: Callable[[LossPoint], float | None]) -> list[MeanPoint]:
    """Return the points that all seeds of a row have under one kind of limit, by rising cost."""
    by_setting: dict[object, list[LossPoint]] = {}
    for curve in row.curves:
        for point in curve.all_points:
            if _has_limit(point, limit):
                by_setting.setdefault((point.step_limit, point.budget), []).append(point)
    means = []
    for points in by_setting.values():
        costs = [cost for cost in map(cost_of, points) if cost is not None]
        if costs and len(points) == len(row.curves):
            means.append(mean_point(costs, [point.loss for point in points]))
    return sorted(means, key=lambda point: point.cost)


def mean_point(costs: Iterable[float], losses: Sequence[float]) -> MeanPoint:
    """Return means over seeds, and the standard deviation of the loss."""
    return MeanPoint(
        cost=statistics.fmean(costs),
        loss=statistics.fmean(losses),
        spread=statistics.stdev(losses) if len(losses) > 1 else 0.0,
    )


def _has_limit(point: LossPoint, limit: Limit) -> bool:
    if point.step_limit is not None:
        return limit is Limit.FIXED
    if point.signal is not None:
        return limit is Limit.BASELINE
    # Thresholds that were not chosen for a budget lie elsewhere on each seed's curve.
    return limit is Limit.ROUTER and (point.budget is not None or point.pruning_threshold is None)


def _draw(axes: Axes, points: Sequence[MeanPoint], number: int, *, label: str, linestyle: str) -> None:
    axes.errorbar(
        [point.cost for point in points],
        [point.loss for point in points],
        yerr=[point.spread for point in points],
        color=LIGHT[curve_role(number)],
        marker=MARKERS[(number + number // NUM_CURVE_COLORS) % len(MARKERS)],
        linestyle=linestyle,
        capsize=2,
        label=label or None,
    )


def _finished(axes: Axes, cost: str, title: str) -> bytes:
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel(cost)
    axes.set_ylabel("held-out loss, nats per token")
    axes.set_title(title, fontsize="medium")
    axes.margins(x=0.1, y=0.1)
    axes.legend(fontsize="small")
    return render_png(axes)
