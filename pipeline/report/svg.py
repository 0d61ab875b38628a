"""SVG elements as escaped text."""

from markupsafe import Markup, escape


def element(tag: str, attributes: dict[str, str | float], *children: str | Markup) -> Markup:
    """Return one element; plain text and attribute values are escaped, ``Markup`` children are not."""
    written = Markup("").join(
        Markup(' {}="{}"').format(name, _value(value)) for name, value in attributes.items()
    )
    inside = Markup("").join(escape(child) for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(tag), written, inside)


def line(start: tuple[float, float], end: tuple[float, float], css: str) -> Markup:
    """Return a straight line."""
    return element("line", {"x1": start[0], "y1": start[1], "x2": end[0], "y2": end[1], "class": css})


def polyline(points: list[tuple[float, float]], css: str) -> Markup:
    """Return a line through all points."""
    path = " ".join(f"{_value(x)},{_value(y)}" for x, y in points)
    return element("polyline", {"points": path, "class": css})


def dot(at: tuple[float, float], css: str, radius: float = 3.5) -> Markup:
    """Return a filled circle."""
    return element("circle", {"cx": at[0], "cy": at[1], "r": radius, "class": css})


def bar(left: float, top: float, width: float, height: float, css: str) -> Markup:
    """Return a rectangle with slightly rounded corners."""
    sizes: dict[str, str | float] = {"x": left, "y": top, "width": width, "height": max(height, 0.0)}
    return element("rect", sizes | {"rx": min(3.0, width / 2), "class": css})


def label(at: tuple[float, float], text: str, css: str, anchor: str = "start") -> Markup:
    """Return text; ``anchor`` is ``start``, ``middle`` or ``end``."""
    return element("text", {"x": at[0], "y": at[1], "class": css, "text-anchor": anchor}, text)


def drawing(width: float, height: float, description: str, *children: Markup) -> Markup:
    """Return a whole drawing that screen readers announce as one picture with ``description``."""
    attributes: dict[str, str | float] = {
        "viewBox": f"0 0 {_value(width)} {_value(height)}",
        "role": "img",
        "aria-label": description,
    }
    return element("svg", attributes, *children)


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
