"""What a user may have meant: the nearest name, the nearest number that fits."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name most like `name`, or None where none is close."""
    matches = get_close_matches(name.replace("-", "_").lower(), list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def nearest_multiples(value: int, divisor: int) -> str:
    """Return the positive multiples of `divisor` around `value`, in words: `96 or 128`."""
    below = value // divisor * divisor
    above = below + divisor
    return f"{below} or {above}" if below > 0 else str(above)


def largest_common_divisor_up_to(limit: int, numbers: Iterable[int]) -> int:
    """Return the largest number of at most `limit` that divides all `numbers` (1 always does)."""
    values = list(numbers)
    return next(
        candidate for candidate in range(limit, 0, -1) if all(value % candidate == 0 for value in values)
    )
