"""The look of all charts, and their output as SVG inside a page or as a PNG file.

One SVG serves light and dark pages: it is drawn in placeholder colours, one per role, which become
references to the CSS variables of the page.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from pipeline.report.colors import LIGHT, NUM_CURVE_COLORS, curve_role
from pipeline.report.marks import Mark, add_marks

# With this resolution a point is a pixel, so sizes of charts and fonts are in CSS pixels.
PIXELS_PER_INCH = 72
PNG_DOTS_PER_INCH = 150
XLINK = "{http://www.w3.org/1999/xlink}"

ColorOf = Callable[[str], str]


def css_placeholder(role: str) -> str:
    """Return the colour that stands for a role of the page until the SVG is written.

    Args:
        role: a key of ``LIGHT``, or ``s`` and a number of ponder steps.
    """
    if role in LIGHT:
        return f"#0000{list(LIGHT).index(role) + 1:02x}"
    return f"#01{int(role.removeprefix('s')):04x}"


@contextmanager
def styled_axes(size: tuple[float, float], color_of: ColorOf = css_placeholder) -> Iterator[Axes]:
    """Provide the axes of a new figure; draw and write the figure within the context.

    Settings of matplotlib on this machine have no influence, and none is changed after the context.

    Args:
        size: width and height in pixels.
        color_of: the colour of each role; ``LIGHT.__getitem__`` for a PNG.
    """
    with styled_figure(size, color_of) as figure:
        axes = figure.add_subplot()
        axes.grid(axis="y")
        yield axes


@contextmanager
def styled_figure(size: tuple[float, float], color_of: ColorOf = css_placeholder) -> Iterator[Figure]:
    """Provide a new figure without axes; see :func:`styled_axes`."""
    with style.context(["default", _settings(color_of)]):
        width, height = size
        inches = (width / PIXELS_PER_INCH, height / PIXELS_PER_INCH)
        yield Figure(figsize=inches, dpi=PIXELS_PER_INCH, layout="constrained")


def render_svg(axes: Axes, description: str, marks: Sequence[Mark] = ()) -> Markup:
    """Return the figure of ``axes`` as an SVG element that screen readers announce as ``description``.

    With ``marks`` it takes the focus, and shows the values of the one that is pointed at.

    Equal figures give equal text. Identifiers are unique within a page as long as no two figures have the
    same description and size.
    """
    written = io.BytesIO()
    figure = _figure_of(axes)
    with mpl.rc_context({"svg.hashsalt": f"{figure.get_size_inches()} {description}"}):
        figure.savefig(written, format="svg", transparent=True)
    root = ElementTree.fromstring(written.getvalue())
    used = {element.get(f"{XLINK}href", "").removeprefix("#") for element in root.iter()}
    _clean(root, used)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": description}
    if marks:
        root.set("tabindex", "0")
        add_marks(root, axes, marks)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def render_png(axes: Axes) -> bytes:
    """Return the figure of ``axes`` as a PNG."""
    return render_figure_png(_figure_of(axes))


def render_figure_png(figure: Figure) -> bytes:
    """Return a figure as a PNG."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=PNG_DOTS_PER_INCH, metadata={"Software": None})
    return image.getvalue()


def _settings(color_of: ColorOf) -> dict[str, Any]:
    muted, axis = color_of("muted"), color_of("axis")
    curves = [color_of(curve_role(index)) for index in range(NUM_CURVE_COLORS)]
    return {
        "axes.autolimit_mode": "round_numbers",
        "axes.axisbelow": True,
        "axes.edgecolor": axis,
        "axes.labelcolor": muted,
        "axes.labelpad": 6.0,
        "axes.prop_cycle": cycler(color=curves),
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.xmargin": 0.0,
        "axes.ymargin": 0.0,
        "font.size": 13.0,
        "grid.color": color_of("line"),
        "grid.linewidth": 1.0,
        "legend.borderaxespad": 0.2,
        "legend.fontsize": 13.0,
        "legend.frameon": False,
        "lines.linewidth": 2.2,
        "lines.markersize": 6.0,
        "patch.edgecolor": axis,
        "patch.force_edgecolor": True,
        "patch.linewidth": 0.8,
        "svg.fonttype": "none",
        "text.color": color_of("ink"),
        "xtick.bottom": False,
        "xtick.labelcolor": muted,
        "ytick.labelcolor": muted,
        "ytick.left": False,
    }


def _figure_of(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None, "the axes have been removed from their figure"
    return figure


def _clean(element: ElementTree.Element, used: set[str]) -> None:
    """Leave only what an SVG inside a page needs, with colours as CSS variables.

    Clip paths go as well: all data is within its axes, and clipping would halve lines along their borders.
    """
    element.tag = element.tag.rpartition("}")[2]
    for child in list(element):
        if child.tag.endswith(("}metadata", "}style", "}clipPath")):
            element.remove(child)
        else:
            _clean(child, used)
    element.attrib.pop("clip-path", None)
    if element.get("id") not in used:
        element.attrib.pop("id", None)
    if (target := element.attrib.pop(f"{XLINK}href", None)) is not None:
        element.set("href", target)
    if (css := element.get("style")) is not None:
        # Text has the font of the page.
        css = re.sub("font-family: [^;]*;? ?", "", css)
        element.set("style", re.sub("#[0-9a-f]{6}", _css_variable, css))


def _css_variable(placeholder: re.Match[str]) -> str:
    number = int(placeholder.group()[1:], 16)
    role = f"s{number & 0xFFFF}" if number >> 16 else list(LIGHT)[number - 1]
    return f"var(--{role})"
