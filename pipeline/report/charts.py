"""The two kinds of charts of the report: lines over iterations, and bars by category."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import fill

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from pipeline.report.data import Points
from pipeline.report.style import css_placeholder, render_svg, styled_axes

# Two charts of this size fit next to each other on a page, and one on a phone.
CARD = (430.0, 270.0)
# More points than this are neither visible nor worth the file size.
MAX_POINTS = 500
# Up to here single points can be distinguished, so they get dots.
MAX_DOTS = 30
# With more bars than this the values above them would overlap; the table below the chart has them anyway.
MAX_LABELLED_BARS = 9
MAX_NAME_WIDTH = 10
MAX_TICKS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: its name, its points, and the role of its colour."""

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


def line_chart(
    series: Sequence[Series],
    *,
    description: str,
    references: Sequence[Reference] = (),
    from_zero: bool = False,
    top: float | None = None,
    format_tick: Callable[[float], str] = "{:g}".format,
    size: tuple[float, float] = CARD,
) -> Markup:
    """Draw lines over iterations; a legend names them if there is more than one.

    Args:
        series: at least one line, with at least one point each.
        description: what a screen reader announces.
        from_zero: start the vertical axis at 0.
        top: smallest end of the vertical axis.
        format_tick: text of a number at the vertical axis.
        size: width and height in pixels.
    """
    with styled_axes(size) as axes:
        for line in series:
            points = thin_out(line.points)
            axes.plot(
                [iteration for iteration, _ in points],
                [value for _, value in points],
                color=css_placeholder(line.color),
                marker="o" if len(points) <= MAX_DOTS else "",
                label=line.name,
            )
        for mark in references:
            axes.axhline(
                mark.value, color=css_placeholder("muted"), linewidth=1.5, dashes=(5, 3), label=mark.name
            )
        if len(series) + len(references) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, handlelength=1.5, columnspacing=1.5)
        iterations = [iteration for line in series for iteration, _ in line.points]
        axes.set_xlim(min(0.0, *iterations), max(iterations) or 1.0)
        axes.locator_params(axis="x", nbins=MAX_TICKS - 1)
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        _set_value_axis(axes, [0.0] * from_zero + ([] if top is None else [top]), format_tick)
        return render_svg(axes, description)


def bar_chart(
    bars: Sequence[Bar],
    *,
    description: str,
    axis: str,
    format_value: Callable[[float], str],
    format_tick: Callable[[float], str] = "{:g}".format,
    top: float | None = None,
) -> Markup:
    """Draw bars from zero, each with its value above it.

    Args:
        bars: at least one, with values of at least 0.
        description: what a screen reader announces.
        axis: what the categories are.
        format_value: text of the value of a bar.
        format_tick: text of a number at the vertical axis.
        top: smallest end of the vertical axis.
    """
    values = [bar.value for bar in bars]
    with styled_axes(CARD) as axes:
        drawn = axes.bar(
            range(len(bars)), values, width=0.62, color=[css_placeholder(bar.color) for bar in bars]
        )
        if len(bars) <= MAX_LABELLED_BARS:
            axes.bar_label(drawn, [format_value(value) for value in values], padding=3, fontweight="bold")
        axes.set_xlim(-0.5, len(bars) - 0.5)
        axes.set_xticks(range(len(bars)), [fill(bar.name, MAX_NAME_WIDTH) for bar in bars])
        axes.set_xlabel(axis)
        _set_value_axis(axes, [max(values) or 1.0, top or 0.0], format_tick)
        return render_svg(axes, description)


def thin_out(points: Points, max_points: int = MAX_POINTS) -> Points:
    """Keep at most ``max_points`` points, equally spaced by their order, with the first and the last."""
    if len(points) <= max_points:
        return points
    last = len(points) - 1
    return tuple(points[round(index * last / (max_points - 1))] for index in range(max_points))


def _set_value_axis(axes: Axes, included: Sequence[float], format_tick: Callable[[float], str]) -> None:
    """Widen the vertical axis to the ``included`` values and then to round numbers."""
    axes.update_datalim([(0.0, value) for value in included])
    axes.locator_params(axis="y", nbins=MAX_TICKS - 1)
    axes.autoscale_view(scalex=False)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
