"""The two kinds of charts of the report: lines over iterations or a cost, and bars by category."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from pipeline.report.data import Points
from pipeline.report.marks import Mark, marks_between
from pipeline.report.style import css_placeholder, render_svg, styled_axes

Size = tuple[float, float]
Format = Callable[[float], str]
# On a page of full width: all of it, or two charts next to each other; and a phone of 390 pixels.
WIDE: Size = (1060.0, 330.0)
CARD: Size = (430.0, 270.0)
NARROW: Size = (336.0, 250.0)
# More points than this are neither visible nor worth the file size.
MAX_POINTS = 500
# Up to here single points can be distinguished, so they get dots.
MAX_DOTS = 30
# Pixels per mark: fewer are hard to point at, and each takes space in the file.
MARK_WIDTH = 12
MAX_NAME_WIDTH = 10
MAX_TICKS = 6
# Of the text in a chart, in pixels.
LETTER_WIDTH = 7.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its name, its points by rising place, and the role of its colour."""

    name: str
    points: Points
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A dashed horizontal line at a value worth comparing with."""

    name: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar: the name below it, its value, and the role of its colour."""

    name: str
    value: float
    color: str


@dataclass(frozen=True, slots=True, kw_only=True)
class HorizontalAxis:
    """The horizontal axis of a line chart.

    Attributes:
        name: with the unit.
        format: text of a place.
        from_zero: the axis begins at 0.
    """

    name: str
    format: Format
    from_zero: bool = True


ITERATIONS = HorizontalAxis(name="iteration", format="{:,.0f}".format)


def line_chart(
    series: Sequence[Series],
    *,
    description: str,
    over: HorizontalAxis = ITERATIONS,
    references: Sequence[Reference] = (),
    from_zero: bool = False,
    top: float | None = None,
    logarithmic: bool = False,
    format_tick: Format = "{:g}".format,
    format_value: Format = "{:.4g}".format,
    size: Size = CARD,
) -> Markup:
    """Draw lines; a legend names them if there is more than one.

    Args:
        series: at least one line, with at least one point each.
        description: what a screen reader announces.
        over: the horizontal axis.
        references: values to compare with.
        from_zero: start the vertical axis at 0.
        top: smallest end of the vertical axis.
        logarithmic: the vertical axis is; all values are above 0.
        format_tick: text of a number at the vertical axis.
        format_value: text of a value that is pointed at.
        size: width and height in pixels.
    """
    with styled_axes(size) as axes:
        for line in series:
            points = thin_out(line.points)
            axes.plot(
                [place for place, _ in points],
                [value for _, value in points],
                color=css_placeholder(line.color),
                marker="o" if len(points) <= MAX_DOTS else "",
                label=line.name,
            )
        for mark in references:
            axes.axhline(
                mark.value, color=css_placeholder("muted"), linewidth=1.5, dashes=(5, 3), label=mark.name
            )
        _add_legend(axes, [*(line.name for line in series), *(mark.name for mark in references)], size)
        _set_horizontal_axis(axes, [place for line in series for place, _ in line.points], over, size)
        if logarithmic:
            _set_logarithmic_axis(axes, format_tick)
        else:
            _set_value_axis(axes, [0.0] * from_zero + ([] if top is None else [top]), format_tick)
        return render_svg(axes, description, _marks_of(series, over, format_value, size))


def bar_chart(
    bars: Sequence[Bar],
    *,
    description: str,
    axis: str,
    format_value: Format,
    format_tick: Format = "{:g}".format,
    top: float | None = None,
    size: Size = CARD,
) -> Markup:
    """Draw bars from zero, each with its value above it where there is room.

    Args:
        bars: at least one, with values of at least 0.
        description: what a screen reader announces.
        axis: what the categories are.
        format_value: text of the value of a bar.
        format_tick: text of a number at the vertical axis.
        top: smallest end of the vertical axis.
        size: width and height in pixels.
    """
    values = [bar.value for bar in bars]
    texts = [format_value(value) for value in values]
    with styled_axes(size) as axes:
        drawn = axes.bar(
            range(len(bars)), values, width=0.62, color=[css_placeholder(bar.color) for bar in bars]
        )
        # The axis and its numbers take a fifth of the width.
        if len(bars) * max(len(text) for text in texts) * LETTER_WIDTH <= 0.8 * size[0]:
            axes.bar_label(drawn, texts, padding=3, fontweight="bold")
        axes.set_xlim(-0.5, len(bars) - 0.5)
        axes.set_xticks(range(len(bars)), [fill(bar.name, MAX_NAME_WIDTH) for bar in bars])
        axes.set_xlabel(axis)
        _set_value_axis(axes, [max(values) or 1.0, top or 0.0], format_tick)
        marks = [
            Mark(at=index, left=index - 0.5, right=index + 0.5, lines=(f"{bar.name}: {text}",))
            for index, (bar, text) in enumerate(zip(bars, texts, strict=True))
        ]
        return render_svg(axes, description, marks)


def thin_out(points: Points, max_points: int = MAX_POINTS) -> Points:
    """Keep at most ``max_points`` points, equally spaced by their order, with the first and the last."""
    if len(points) <= max_points:
        return points
    last = len(points) - 1
    return tuple(points[round(index * last / (max_points - 1))] for index in range(max_points))


def _marks_of(series: Sequence[Series], over: HorizontalAxis, form: Format, size: Size) -> list[Mark]:
    """Return marks at places where lines have points, each with the values of the lines there."""
    places = sorted({place for line in series for place, _ in line.points})
    chosen = [place for place, _ in thin_out(tuple((place, 0.0) for place in places), _num_marks(size))]
    lines = [
        (f"{over.name} {over.format(place)}", *_values_at(series, place, over, form)) for place in chosen
    ]
    return marks_between(chosen, lines)


def _num_marks(size: Size) -> int:
    return max(2, int(size[0] / MARK_WIDTH))


def _values_at(series: Sequence[Series], place: float, over: HorizontalAxis, form: Format) -> list[str]:
    """Return the value of each line at its last point up to a place."""
    texts = []
    for line in series:
        index = bisect_left(line.points, place, key=lambda point: point[0])
        if index < len(line.points) and line.points[index][0] == place:
            texts.append(f"{line.name} {form(line.points[index][1])}")
        elif index > 0:
            before, value = line.points[index - 1]
            # A line that has ended is not at the place any more.
            if index < len(line.points):
                texts.append(f"{line.name} {form(value)} (at {over.format(before)})")
    return texts


def _add_legend(axes: Axes, names: Sequence[str], size: Size) -> None:
    """Name the lines above the chart, in as many columns as fit."""
    if len(names) < 2:
        return
    column = max(len(name) for name in names) * LETTER_WIDTH + 45
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=max(1, min(4, int(size[0] / column))),
        handlelength=1.5,
        columnspacing=1.5,
    )


def _set_horizontal_axis(axes: Axes, places: Sequence[float], over: HorizontalAxis, size: Size) -> None:
    first, last = min(places), max(places)
    if over.from_zero:
        axes.set_xlim(min(0.0, first), last or 1.0)
    else:
        margin = (last - first or abs(last) or 1.0) / 12
        axes.set_xlim(first - margin, last + margin)
    axes.locator_params(axis="x", nbins=MAX_TICKS - (1 if size[0] > NARROW[0] else 2))
    axes.set_xlabel(over.name)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: over.format(place)))


def _set_value_axis(axes: Axes, included: Sequence[float], format_tick: Format) -> None:
    """Widen the vertical axis to the ``included`` values and then to round numbers."""
    axes.update_datalim([(0.0, value) for value in included])
    axes.locator_params(axis="y", nbins=MAX_TICKS - 1)
    axes.autoscale_view(scalex=False)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))


def _set_logarithmic_axis(axes: Axes, format_tick: Format) -> None:
    """Make the vertical axis logarithmic, from one power of ten to another."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(numticks=MAX_TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.autoscale_view(scalex=False)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
