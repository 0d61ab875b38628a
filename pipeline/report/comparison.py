"""The plot of held-out loss against inference cost, as a PNG."""

from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from pipeline.evaluation.compare.curve import PruningCurve, front
from pipeline.metrics.records import LossPoint
from pipeline.report.colors import LIGHT, NUM_CURVE_COLORS, curve_role
from pipeline.report.style import render_png, styled_axes

SIZE = (720.0, 450.0)
MARKERS = "osD^vP*X"
# Points of a run whose costs differ by at most this share are labelled together.
SAME_COST = 0.005


def render_comparison_png(curves: Sequence[PruningCurve], labels: Sequence[str]) -> bytes:
    """Draw one line per run, one marker per threshold, and the front of all runs behind them.

    Args:
        curves: at least one.
        labels: of the runs, in the same order.
    """
    with styled_axes(SIZE, LIGHT.__getitem__) as axes:
        best = sorted(front(point for curve in curves for point in curve.all_points), key=_cost)
        axes.step(
            [_cost(point) for point in best],
            [point.loss for point in best],
            where="post",
            color=LIGHT["axis"],
            zorder=1,
            label="front",
        )
        for number, (curve, label) in enumerate(zip(curves, labels, strict=True)):
            points = sorted(curve.points, key=_cost)
            axes.plot(
                [_cost(point) for point in points],
                [point.loss for point in points],
                color=LIGHT[curve_role(number)],
                marker=_marker(number),
                label=label,
                zorder=2,
            )
            for group in _groups_of_equal_cost(points):
                _label_thresholds(axes, group)
            _plot_baseline(axes, curve, label, number)
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.set_xlabel("inference FLOPs per token")
        axes.set_ylabel("held-out loss, nats per token")
        axes.set_title("held-out loss by inference cost; numbers are thresholds", fontsize="medium")
        axes.margins(x=0.15, y=0.05)
        axes.legend()
        return render_png(axes)


def _plot_baseline(axes: Axes, curve: PruningCurve, label: str, number: int) -> None:
    """Draw halting without training in the colour of the run, dashed and hollow."""
    points = sorted(curve.baseline, key=_cost)
    if not points:
        return
    axes.plot(
        [_cost(point) for point in points],
        [point.loss for point in points],
        color=LIGHT[curve_role(number)],
        marker=_marker(number),
        markerfacecolor="none",
        linestyle="dashed",
        label=f"{label}, by {points[0].signal}",
        zorder=2,
    )


def _marker(number: int) -> str:
    """Return the marker of a run, shifted after each round of colours so that 64 runs look different."""
    return MARKERS[(number + number // NUM_CURVE_COLORS) % len(MARKERS)]


def _groups_of_equal_cost(points: Sequence[LossPoint]) -> Iterator[list[LossPoint]]:
    """Gather neighbours, by rising cost, that the plot cannot tell apart."""
    group: list[LossPoint] = []
    for point in points:
        if group and _cost(point) > (1 + SAME_COST) * _cost(group[0]):
            yield group
            group = []
        group.append(point)
    yield group


def _label_thresholds(axes: Axes, group: Sequence[LossPoint]) -> None:
    thresholds = [point.pruning_threshold for point in group if point.pruning_threshold is not None]
    if not thresholds:
        return
    least, most = min(thresholds), max(thresholds)
    text = f"{least:g}" if least == most else f"{least:g} to {most:g}"
    position = (_cost(group[-1]), group[-1].loss)
    axes.annotate(text, position, xytext=(5, 5), textcoords="offset points", fontsize="small")


def _cost(point: LossPoint) -> float:
    return point.flops_per_token
