"""Axes: from values to pixels, and round numbers to label them with. Pure."""

import math
from dataclasses import dataclass

ROUND_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearScale:
    """Map values between ``low`` and ``high`` linearly to pixels between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def round_ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Return at most ``most`` round numbers within [low, high], equally spaced.

    Raises:
        ValueError: the interval is empty.
    """
    if not high > low:
        raise ValueError(f"an axis must end above its start, but runs from {low} to {high}")
    step = _round_step((high - low) / (most - 1))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def round_range(low: float, high: float, *, most: int = 6) -> tuple[float, float]:
    """Widen [low, high] to round ends, so that the outermost labels are the ends of the axis."""
    if high == low:
        half = abs(low) / 2 or 0.5
        low, high = low - half, high + half
    step = _round_step((high - low) / (most - 1))
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def spread(positions: list[float], *, gap: float, low: float, high: float) -> list[float]:
    """Move labels apart to at least ``gap``, in their order, staying within [low, high] where they fit."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    moved = list(positions)
    floor = low
    for index in order:
        moved[index] = max(moved[index], floor)
        floor = moved[index] + gap
    ceiling = high
    for index in reversed(order):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def _round_step(rough: float) -> float:
    """Return the smallest round step that is at least ``rough``."""
    magnitude: float = 10.0 ** math.floor(math.log10(rough))
    return next(factor * magnitude for factor in ROUND_STEPS if factor * magnitude >= rough * (1 - 1e-9))
