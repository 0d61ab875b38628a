"""One colour per number of ponder steps, from pale (0) to strong (K), for light and for dark pages.

Lightness moves one way along each ramp, so the order survives grey printing and colour blindness; the text of
the page keeps a contrast of at least 4.5 to 1 on every colour.
"""

from typing import Final

Rgb = tuple[int, int, int]

LIGHT_RAMP: Final[tuple[Rgb, ...]] = ((240, 238, 231), (250, 222, 166), (246, 176, 106), (232, 126, 84))
DARK_RAMP: Final[tuple[Rgb, ...]] = ((44, 51, 62), (84, 69, 46), (134, 84, 42), (168, 74, 40))


def step_colors(ramp: tuple[Rgb, ...], num_colors: int) -> list[str]:
    """Return ``num_colors`` colours as ``#rrggbb``, equally spaced along a ramp."""
    if num_colors == 1:
        return [_hex(ramp[0])]
    last = len(ramp) - 1
    return [_hex(_between(ramp, index * last / (num_colors - 1))) for index in range(num_colors)]


def contrast(first: Rgb, second: Rgb) -> float:
    """Return the contrast ratio of two colours, 1 to 21, as WCAG 2 defines it."""
    brighter, darker = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def _between(ramp: tuple[Rgb, ...], place: float) -> Rgb:
    index = min(int(place), len(ramp) - 2)
    share = place - index
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
