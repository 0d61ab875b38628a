"""The values in a chart: areas that show them when they are pointed at, or reached with the arrow keys.

All is part of the SVG and styled by the page; a chart without that style shows nothing of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from xml.etree.ElementTree import Element, SubElement

from matplotlib.axes import Axes

# Of the small text in a chart, in pixels; letters are narrower on average.
LINE_HEIGHT, LETTER_WIDTH = 16.0, 6.6
PADDING = 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A place on the horizontal axis and the values there.

    Attributes:
        at: in data coordinates.
        left, right: ends of the area that shows the values, in data coordinates.
        lines: of text.
    """

    at: float
    left: float
    right: float
    lines: tuple[str, ...]


def marks_between(positions: Sequence[float], lines: Sequence[tuple[str, ...]]) -> list[Mark]:
    """Return marks whose areas meet half way between neighbours.

    Args:
        positions: rising.
        lines: of text, for each position.
    """
    middles = [(here + there) / 2 for here, there in pairwise(positions)]
    left, right = [positions[0], *middles], [*middles, positions[-1]]
    return [
        Mark(at=at, left=start, right=end, lines=text)
        for at, start, end, text in zip(positions, left, right, lines, strict=True)
    ]


def add_marks(root: Element, axes: Axes, marks: Sequence[Mark]) -> None:
    """Append marks to the SVG of a figure that has been written.

    Args:
        root: the ``svg`` element; its unit is a pixel of the figure.
        axes: where the data is; the figure has the resolution of the SVG.
        marks: from left to right.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None, "the axes have been removed from their figure"
    width, height = figure.bbox.width, figure.bbox.height
    box = axes.get_window_extent()
    top, bottom = height - box.y1, height - box.y0
    for mark in marks:
        (at, _), (left, _), (right, _) = axes.transData.transform(
            [(mark.at, 0), (mark.left, 0), (mark.right, 0)]
        )
        group = SubElement(root, "g", {"class": "mark"})
        # An area that is one pixel wide can still be pointed at.
        area = {"x": left - 0.5, "y": top, "width": max(1.0, right - left + 1.0), "height": bottom - top}
        SubElement(group, "rect", {"class": "area", **_numbers(area)})
        SubElement(group, "path", {"class": "guide", "d": f"M{at:.1f} {top:.1f}V{bottom:.1f}"})
        _add_tip(group, mark.lines, at=at, top=top, width=width)


def _add_tip(group: Element, lines: Sequence[str], *, at: float, top: float, width: float) -> None:
    """Add a box with text beside a mark, within the width of the chart."""
    size = max(len(line) for line in lines) * LETTER_WIDTH + 2 * PADDING
    beside = at + 8 if at + 8 + size <= width else at - 8 - size
    left = min(max(0.0, beside), max(0.0, width - size))
    tip = SubElement(group, "g", {"class": "tip"})
    box = {"x": left, "y": top, "width": size, "height": len(lines) * LINE_HEIGHT + 2 * PADDING - 3}
    SubElement(tip, "rect", {"rx": "5", **_numbers(box)})
    for number, line in enumerate(lines, start=1):
        place = {"x": left + PADDING, "y": top + PADDING + number * LINE_HEIGHT - 5}
        SubElement(tip, "text", _numbers(place)).text = line


def _numbers(values: dict[str, float]) -> dict[str, str]:
    return {name: f"{value:.1f}" for name, value in values.items()}
