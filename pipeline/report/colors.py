"""The colours of reports and charts, by role, for light and for dark pages.

Roles: ``page``, ``card``, ``ink`` (text), ``muted`` (secondary text), ``line`` (grid), ``axis``, ``accent``,
``c1`` to ``c8`` (curves), and one per number of ponder steps, ``s0`` to ``sK``, from pale to strong.

Lightness is monotonic along each ramp of steps, so the order survives greyscale printing and colour
blindness, and up to four steps beside each other differ clearly in hue too; the text of the page keeps a
contrast of at least 4.5 to 1 on every step colour. Terminals of 16 colours have pairs of their own.
"""

from collections.abc import Mapping
from typing import Final

Rgb = tuple[int, int, int]

LIGHT_RAMP: Final[tuple[Rgb, ...]] = ((233, 236, 242), (250, 222, 150), (244, 165, 96), (226, 112, 92))
DARK_RAMP: Final[tuple[Rgb, ...]] = ((36, 48, 70), (84, 72, 26), (138, 80, 22), (186, 62, 66))

# Text and background by number of steps, on a terminal of 16 colours; they repeat with an underline.
BASIC_STYLES: Final = (
    "black on white",
    "black on cyan",
    "black on yellow",
    "white on red",
    "white on magenta",
    "white on blue",
)

# Tokens are also underlined by their steps, at most so thick, for eyes that see no difference in colour.
THICKEST_LINE: Final = 4

NUM_CURVE_COLORS: Final = 8
LIGHT: Final[Mapping[str, str]] = {
    "page": "#f6f4ee",
    "card": "#fffefb",
    "ink": "#1d2330",
    "muted": "#5a6372",
    "line": "#e4e0d5",
    "axis": "#b9b4a6",
    "accent": "#b4502a",
    "c1": "#1f6f8b",
    "c2": "#c43d50",
    "c3": "#a86a12",
    "c4": "#3f7f5c",
    "c5": "#6a4fa3",
    "c6": "#8a5a44",
    "c7": "#5d6b1e",
    "c8": "#a0447e",
}
DARK: Final[Mapping[str, str]] = {
    "page": "#12151b",
    "card": "#1a1f27",
    "ink": "#eceae4",
    "muted": "#a0a8b5",
    "line": "#2b323d",
    "axis": "#4a5361",
    "accent": "#f0976b",
    "c1": "#62bbd8",
    "c2": "#f28b97",
    "c3": "#efc06a",
    "c4": "#8bcba8",
    "c5": "#b8a3ea",
    "c6": "#d3a98f",
    "c7": "#c2cc7a",
    "c8": "#e79cc8",
}


def curve_role(index: int) -> str:
    """Return the role of the curve with this index; roles repeat after ``NUM_CURVE_COLORS`` curves."""
    return f"c{index % NUM_CURVE_COLORS + 1}"


def step_colors(ramp: tuple[Rgb, ...], num_colors: int) -> list[str]:
    """Return ``num_colors`` colours as ``#rrggbb``, equally spaced along a ramp."""
    if num_colors == 1:
        return [_hex(ramp[0])]
    last = len(ramp) - 1
    return [_hex(_between(ramp, index * last / (num_colors - 1))) for index in range(num_colors)]


def line_widths(num_colors: int) -> list[int]:
    """Return how thick the line below the tokens of each colour is, in pixels."""
    return [round(THICKEST_LINE * step / max(num_colors - 1, THICKEST_LINE)) for step in range(num_colors)]


def contrast(first: Rgb, second: Rgb) -> float:
    """Return the contrast ratio of two colours, 1 to 21, as WCAG 2 defines it."""
    brighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def _between(ramp: tuple[Rgb, ...], position: float) -> Rgb:
    index = min(int(position), len(ramp) - 2)
    share = position - index
    red, green, blue = (
        round(low + (high - low) * share) for low, high in zip(ramp[index], ramp[index + 1], strict=True)
    )
    return red, green, blue


def _hex(color: Rgb) -> str:
    return "#" + "".join(f"{channel:02x}" for channel in color)


def _luminance(color: Rgb) -> float:
    linear = [
        channel / 255 / 12.92 if channel / 255 <= 0.03928 else ((channel / 255 + 0.055) / 1.055) ** 2.4
        for channel in color
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
