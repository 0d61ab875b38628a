"""The line of a logging interval for people at a terminal: at most 79 columns, whatever was measured.

Files and pipes get Megatron's line instead (:mod:`pipeline.metrics.log_line`), which scripts parse.
"""

from collections.abc import Callable

from pipeline.metrics import names
from pipeline.metrics.records import TrainingRecord, ValidationRecord

__all__ = ["LONGEST_LINE", "ShortLineSink", "render_short_line", "render_short_validation"]

# A terminal of 80 columns wraps a line that fills it.
LONGEST_LINE = 79


def render_short_line(record: TrainingRecord) -> str:
    """Render one logging interval; fields that do not fit any more are dropped from the end.

    The fields are the iteration, the loss, the norm of the gradient, the learning rate, tokens per second,
    mean extra steps per token, the share of FLOPs saved, and the most memory taken on the device.
    """
    fields = [f"{record.iteration:6d}", f"loss {record.loss:.4f}"]
    if record.grad_norm is not None:
        fields.append(f"grad {record.grad_norm:.3g}")
    fields.append(f"lr {record.learning_rate:.1e}")
    fields.append(f"{_short(record.tokens_per_second)} tok/s")
    if names.MEAN_STEPS in record.scalars:
        fields.append(f"steps {record.scalars[names.MEAN_STEPS]:.2f}")
    if names.FLOPS_SAVED in record.scalars:
        fields.append(f"saved {record.scalars[names.FLOPS_SAVED]:.0%}")
    if record.memory_bytes is not None:
        fields.append(f"{record.memory_bytes / 2**30:.3g} GiB")
    return _fitted(fields)


def render_short_validation(record: ValidationRecord) -> str:
    """Render one evaluation on the held-out split."""
    fields = [
        f"{record.iteration:6d}",
        f"held-out loss {record.loss:.4f}",
        f"perplexity {record.perplexity:.5g}",
    ]
    if names.MEAN_STEPS in record.scalars:
        fields.append(f"steps {record.scalars[names.MEAN_STEPS]:.2f}")
    return _fitted(fields)


class ShortLineSink:
    """A sink for a line per interval and per evaluation on a terminal."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        """Send each line to ``emit``, such as ``Progress.say``, which does not disturb a progress bar."""
        self._emit = emit

    def write_training(self, record: TrainingRecord) -> None:
        self._emit(render_short_line(record))

    def write_validation(self, record: ValidationRecord) -> None:
        self._emit(render_short_validation(record))

    def close(self) -> None:
        """Nothing is held open."""


def _fitted(fields: list[str]) -> str:
    for separator in ("  ", " "):
        if len(separator.join(fields)) <= LONGEST_LINE:
            return separator.join(fields)
    return _fitted(fields[:-1])


def _short(value: float) -> str:
    """Return a rate with three significant digits and a metric prefix, such as ``12.3k``."""
    for limit, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # Not 1e3 with the smaller prefix, which rounding could make of 999.9.
        if abs(value) >= 0.9995 * limit:
            return f"{value / limit:.3g}{prefix}"
    return f"{value:.3g}"
