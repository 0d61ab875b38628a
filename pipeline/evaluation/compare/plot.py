"""The plot of held-out loss against inference cost, as a PNG."""

import io
from collections.abc import Iterator, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from pipeline.evaluation.compare.curve import PruningCurve, front
from pipeline.metrics.records import LossPoint

DOTS_PER_INCH = 150
MARKERS = "osD^vP*X"
# Points of a run that cost the same but for this share are one place of the plot.
SAME_COST = 0.005


def render_png(curves: Sequence[PruningCurve], labels: Sequence[str]) -> bytes:
    """Draw one line per run, one marker per threshold, and the front of all of them behind.

    Args:
        curves: at least one.
        labels: of the runs, in the same order.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    best = sorted(front(point for curve in curves for point in curve.points), key=_cost)
    axes.step([_cost(one) for one in best], [one.loss for one in best], where="post", color="0.8", zorder=1)
    for number, (curve, label) in enumerate(zip(curves, labels, strict=True)):
        points = sorted(curve.points, key=_cost)
        costs, losses = [_cost(point) for point in points], [point.loss for point in points]
        axes.plot(costs, losses, marker=MARKERS[number % len(MARKERS)], label=label, zorder=2)
        for place in _places(points):
            _name_thresholds(axes, place)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_xlabel("inference FLOPs per token")
    axes.set_ylabel("held-out loss, nats per token")
    axes.set_title("held-out loss by inference cost; numbers are thresholds", fontsize=10)
    axes.margins(x=0.15)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DOTS_PER_INCH)
    return image.getvalue()


def _places(points: Sequence[LossPoint]) -> Iterator[list[LossPoint]]:
    """Gather neighbours, by rising cost, that cannot be told apart."""
    place: list[LossPoint] = []
    for point in points:
        if place and _cost(point) > (1 + SAME_COST) * _cost(place[0]):
            yield place
            place = []
        place.append(point)
    yield place


def _name_thresholds(axes: Axes, place: Sequence[LossPoint]) -> None:
    named = [point.pruning_threshold for point in place if point.pruning_threshold is not None]
    if not named:
        return
    least, most = min(named), max(named)
    text = f"{least:g}" if least == most else f"{least:g} to {most:g}"
    where = (_cost(place[-1]), place[-1].loss)
    axes.annotate(text, where, xytext=(4, 4), textcoords="offset points", fontsize=7)


def _cost(point: LossPoint) -> float:
    return point.flops_per_token
