"""How amounts are written everywhere: operations with metric prefixes, bytes with binary ones."""

__all__ = ["metric", "render_bytes", "render_flops"]

_METRIC = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BINARY = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
# What three digits would round up to the next prefix.
_ROUNDS_UP = 0.9995


def metric(value: float) -> str:
    """Format a number with three significant digits and a metric prefix, such as ``2.48 G``."""
    for limit, prefix in _METRIC:
        if abs(value) >= _ROUNDS_UP * limit:
            return f"{_three_digits(value / limit)} {prefix}"
    return f"{value:g}"


def render_flops(value: float) -> str:
    """Format a number of operations, such as ``6.90 MFLOPs``."""
    text = metric(value)
    return f"{text}FLOPs" if text[-1].isalpha() else f"{text} FLOPs"


def render_bytes(num_bytes: float) -> str:
    """Format a size on disk, on a wire or in memory, such as ``1.25 GiB``."""
    for limit, unit in _BINARY:
        if abs(num_bytes) >= _ROUNDS_UP * limit:
            return f"{_three_digits(num_bytes / limit)} {unit}"
    return f"{num_bytes:,.0f} bytes"


def _three_digits(scaled: float) -> str:
    size = abs(scaled)
    # As it will be rounded: 9.996 has two digits before the point.
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{scaled:,.{digits}f}"
