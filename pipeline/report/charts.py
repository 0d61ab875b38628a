"""The two kinds of charts of the report: lines over iterations, and bars by category. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.report import svg
from pipeline.report.data import Points
from pipeline.report.scale import LinearScale, round_range, round_ticks, spread

LEFT, TOP, BOTTOM = 52.0, 16.0, 42.0
LABEL_GAP = 15.0
# More points than this are neither visible nor worth the file size.
MOST_POINTS = 500
# Up to here single points are told apart, so they get dots.
MOST_DOTS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its name, its points, and the CSS class that colours it."""

    name: str
    points: Points
    css: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A dashed horizontal line at a value worth comparing with."""

    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: what is written below it, its value, and the CSS class that colours it."""

    name: str
    value: float
    css: str


def line_chart(
    series: Sequence[Series],
    *,
    description: str,
    references: Sequence[Reference] = (),
    from_zero: bool = False,
    top: float | None = None,
    write_tick: Callable[[float], str] = "{:g}".format,
    size: tuple[float, float] = (560.0, 280.0),
    label_width: float = 118.0,
) -> Markup:
    """Draw lines over iterations, each named at its right end.

    Args:
        series: lines with at least one point each, at least one line.
        from_zero: start the vertical axis at 0.
        top: where the vertical axis ends at least.
        write_tick: how the vertical axis writes its numbers.
        label_width: room for the names at the right.
    """
    width, height = size
    values = [value for line in series for _, value in line.points] + [mark.value for mark in references]
    values += [0.0] * from_zero + ([] if top is None else [top])
    low, high = round_range(min(values), max(values))
    iterations = [at for line in series for at, _ in line.points]
    across = LinearScale(low=min(0.0, *iterations), high=max(iterations), start=LEFT, end=width - label_width)
    down = LinearScale(low=low, high=high, start=height - BOTTOM, end=TOP)
    parts = [_horizontal_grid(down, across.end, write_tick), _iteration_axis(across, down.start)]
    parts += [
        svg.line((LEFT, down(mark.value)), (across.end, down(mark.value)), "reference") for mark in references
    ]
    parts += [_draw_series(line, across, down) for line in series]
    parts.append(_end_labels(series, references, across, down))
    return svg.drawing(width, height, description, *parts)


def bar_chart(
    bars: Sequence[Bar],
    *,
    description: str,
    axis: str,
    write: Callable[[float], str],
    write_tick: Callable[[float], str] = "{:g}".format,
    top: float | None = None,
    size: tuple[float, float] = (560.0, 260.0),
) -> Markup:
    """Draw bars from zero, each with its value above it.

    Args:
        bars: at least one; values at least 0.
        axis: what the categories are, written below them.
        write: how the value of a bar is written.
        write_tick: how the vertical axis writes its numbers.
        top: where the vertical axis ends at least.
    """
    width, height = size
    _, high = round_range(0.0, max([bar.value for bar in bars] + [top or 0.0]) or 1.0)
    down = LinearScale(low=0.0, high=high, start=height - BOTTOM, end=TOP + 14)
    slot = (width - LEFT - 12) / len(bars)
    bar_width = min(72.0, slot * 0.62)
    parts = [_horizontal_grid(down, width - 12, write_tick)]
    for index, bar in enumerate(bars):
        middle = LEFT + slot * (index + 0.5)
        peak = down(bar.value)
        parts.append(svg.bar(middle - bar_width / 2, peak, bar_width, down.start - peak, f"bar {bar.css}"))
        parts.append(svg.label((middle, peak - 6), write(bar.value), "value", "middle"))
        parts.append(svg.label((middle, down.start + 17), bar.name, "tick", "middle"))
    parts.append(svg.label(((LEFT + width - 12) / 2, height - 6), axis, "axis", "middle"))
    return svg.drawing(width, height, description, *parts)


def thin_out(points: Points, most: int = MOST_POINTS) -> Points:
    """Keep at most ``most`` points, the first and the last among them, equally spaced by their order."""
    if len(points) <= most:
        return points
    last = len(points) - 1
    return tuple(points[round(index * last / (most - 1))] for index in range(most))


def _horizontal_grid(down: LinearScale, right: float, write_tick: Callable[[float], str]) -> Markup:
    parts = []
    for tick in round_ticks(down.low, down.high):
        height = down(tick)
        parts.append(svg.line((LEFT, height), (right, height), "baseline" if tick == down.low else "grid"))
        parts.append(svg.label((LEFT - 8, height + 4), write_tick(tick), "tick", "end"))
    return Markup("").join(parts)


def _iteration_axis(across: LinearScale, bottom: float) -> Markup:
    ticks = round_ticks(across.low, across.high) if across.high > across.low else [across.low]
    labels = [svg.label((across(tick), bottom + 17), f"{tick:,.0f}", "tick", "middle") for tick in ticks]
    middle = (across.start + across.end) / 2
    return Markup("").join([*labels, svg.label((middle, bottom + 36), "iteration", "axis", "middle")])


def _draw_series(series: Series, across: LinearScale, down: LinearScale) -> Markup:
    places = [(across(at), down(value)) for at, value in thin_out(series.points)]
    parts = [svg.polyline(places, f"line {series.css}")]
    if len(places) <= MOST_DOTS:
        parts += [svg.dot(place, f"dot {series.css}") for place in places]
    return Markup("").join(parts)


def _end_labels(
    series: Sequence[Series], references: Sequence[Reference], across: LinearScale, down: LinearScale
) -> Markup:
    names = [(line.name, down(line.points[-1][1]), f"name {line.css}") for line in series]
    names += [(mark.name, down(mark.value), "name muted") for mark in references]
    heights = spread([height for _, height, _ in names], gap=LABEL_GAP, low=TOP, high=down.start)
    placed = zip(names, heights, strict=True)
    return Markup("").join(
        svg.label((across.end + 9, height + 4), name, css) for (name, _, css), height in placed
    )
