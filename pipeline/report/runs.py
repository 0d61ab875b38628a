"""Several runs side by side: a table, and curves over training tokens."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pipeline.report.charts import HorizontalAxis, Series, line_chart
from pipeline.report.colors import curve_role
from pipeline.report.data import Points, ReportData
from pipeline.report.figures import Figure, at_card_widths
from pipeline.report.worth import FLOPS_AXIS, Way, ways_of
from pipeline.shared.units import metric

TOKENS_AXIS = HorizontalAxis(name="training tokens", format=metric)
MILLISECONDS_AXIS = HorizontalAxis(
    name="milliseconds per decoded token", format="{:.3g}".format, from_zero=False
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A way to run one of several models; ``label`` and ``method`` are empty after the first of a run."""

    label: str
    method: str
    way: Way
    is_best: bool


def run_rows(runs: Sequence[ReportData], labels: Sequence[str]) -> tuple[RunRow, ...]:
    """Return a row for every way to run every model; the best loss of all is marked."""
    best = min(way.loss for data in runs for way in ways_of(data))
    return tuple(
        RunRow(
            label=label if number == 0 else "",
            method=data.method if number == 0 else "",
            way=way,
            is_best=way.loss == best,
        )
        for data, label in zip(runs, labels, strict=True)
        for number, way in enumerate(ways_of(data))
    )


def have_same_text(runs: Sequence[ReportData]) -> bool:
    """Whether the losses are of the same held-out text, judged by its entropy and length."""
    return len({(round(data.unigram_entropy, 9), data.heldout_tokens) for data in runs}) == 1


def comparison_figures(runs: Sequence[ReportData], labels: Sequence[str]) -> tuple[Figure, ...]:
    """Return the figures in which every run is a line, without those for which no run has data."""
    by_cost = [
        _cost_figure("Loss by inference FLOPs", runs, labels, lambda way: way.flops_per_token, FLOPS_AXIS),
        _cost_figure("Loss by time", runs, labels, lambda way: way.milliseconds, MILLISECONDS_AXIS),
    ]
    over_tokens = [
        _tokens_figure("Held-out loss", labels, [data.heldout_by_tokens for data in runs]),
        _tokens_figure("Training loss", labels, [data.training_by_tokens for data in runs]),
    ]
    return tuple(figure for figure in (*by_cost, *over_tokens) if figure is not None)


def labels_of(runs: Sequence[ReportData], folders: Sequence[Path]) -> list[str]:
    """Name runs by their names, or where two have the same one, by what their folders differ in."""
    names = [data.name for data in runs]
    if len(set(names)) == len(names):
        return names
    whole = [folder.absolute() for folder in folders]
    common = os.path.commonpath([folder.parent for folder in whole])
    return [str(folder.relative_to(common)) for folder in whole]


def _cost_figure(
    title: str,
    runs: Sequence[ReportData],
    labels: Sequence[str],
    cost_of: Callable[[Way], float | None],
    over: HorizontalAxis,
) -> Figure | None:
    lines: list[Series] = []
    numbers: list[tuple[str, str]] = []
    for index, (data, label) in enumerate(zip(runs, labels, strict=True)):
        ways = [(cost, way) for way in ways_of(data) if (cost := cost_of(way)) is not None]
        points = tuple(sorted((cost, way.loss) for cost, way in ways))
        if points:
            lines.append(Series(name=label, points=points, color=curve_role(index)))
        numbers += [(f"{label}, {way.name}", f"{way.loss:.4f} at {over.format(cost)}") for cost, way in ways]
    if not lines:
        return None
    caption = "Held-out loss, in nats per token; lower and further left is better."
    draw = partial(line_chart, lines, description=f"{title}. {caption}", over=over)
    return Figure(title=title, charts=at_card_widths(draw), caption=caption, numbers=tuple(numbers))


def _tokens_figure(title: str, labels: Sequence[str], curves: Sequence[Points]) -> Figure | None:
    lines = [
        Series(name=label, points=points, color=curve_role(index))
        for index, (label, points) in enumerate(zip(labels, curves, strict=True))
        if points
    ]
    if not lines:
        return None
    caption = "In nats per token, over the tokens that the runs were trained on."
    draw = partial(line_chart, lines, description=f"{title}. {caption}", over=TOKENS_AXIS)
    numbers = tuple(
        (line.name, f"{line.points[-1][1]:.4f} after {metric(line.points[-1][0])} tokens") for line in lines
    )
    return Figure(title=title, charts=at_card_widths(draw), caption=caption, numbers=numbers)
