"""Megatron-LM's log line: bar-separated fields in its order and number formats, new fields at the end.

Scripts that parse Megatron's output parse this one too.
"""

import logging
import time
from collections.abc import Callable, Mapping

from pipeline.metrics import names
from pipeline.metrics.records import TrainingRecord, ValidationRecord

logger = logging.getLogger(__name__)


def render_training_line(record: TrainingRecord, *, timestamp: str) -> str:
    """Render one logging interval.

    Args:
        timestamp: local time as ``YYYY-MM-DD HH:MM:SS``.
    """
    fields = [
        f" [{timestamp}] iteration {record.iteration:8d}/{record.total_iterations:8d}",
        f"consumed samples: {record.consumed_samples:12d}",
        f"elapsed time per iteration (ms): {record.elapsed_seconds * 1000:.1f}",
    ]
    if record.tflops_per_device is not None:
        fields.append(f"throughput per GPU (TFLOP/s/GPU): {record.tflops_per_device:.1f}")
    fields.append(f"learning rate: {record.learning_rate:.6E}")
    if record.decoupled_learning_rate is not None:
        fields.append(f"decoupled learning rate: {record.decoupled_learning_rate:.6E}")
    if record.muon_learning_rate is not None:
        fields.append(f"muon learning rate: {record.muon_learning_rate:.6E}")
    fields += [
        f"global batch size: {record.global_batch_size:5d}",
        f"{names.LM_LOSS}: {record.loss:.6E}",
        f"loss scale: {record.loss_scale:.1f}",
    ]
    if record.grad_norm is not None:
        fields.append(f"grad norm: {record.grad_norm:.3f}")
    if record.num_zeros is not None:
        fields.append(f"num zeros: {record.num_zeros}")
    if record.params_norm is not None:
        fields.append(f"params norm: {record.params_norm:.3f}")
    fields.append(f"number of skipped iterations: {record.skipped_iterations:3d}")
    fields.append(f"number of nan iterations: {record.nan_iterations:3d}")
    fields.append(f"tokens per second: {record.tokens_per_second:.1f}")
    if record.mfu is not None and record.hfu is not None:
        fields.append(f"MFU: {record.mfu:.1%} | HFU: {record.hfu:.1%}")
    fields += _ponder_fields(record.scalars)
    if record.data_hash is not None:
        fields.append(f"data hash: {record.data_hash}")
    return " | ".join(fields) + " |"


def render_validation_block(record: ValidationRecord) -> str:
    """Render one evaluation: three lines, the outer two of dashes."""
    line = (
        f" validation loss at iteration {record.iteration} | "
        f"{names.LM_LOSS} value: {record.loss:.6E} | "
        f"{names.LM_LOSS} PPL: {record.perplexity:.6E} | "
    )
    dashes = "-" * (len(line) + 1)
    return f"{dashes}\n{line}\n{dashes}"


class LogLineSink:
    """A sink for the log line of every interval and the block of every evaluation."""

    def __init__(self, emit: Callable[[str], None] = logger.info) -> None:
        """Send each line to ``emit``, such as ``Progress.say``, which does not disturb a progress bar."""
        self._emit = emit

    def write_training(self, record: TrainingRecord) -> None:
        self._emit(render_training_line(record, timestamp=time.strftime("%Y-%m-%d %H:%M:%S")))

    def write_validation(self, record: ValidationRecord) -> None:
        """Write one dashed block, line by line."""
        for line in render_validation_block(record).splitlines():
            self._emit(line)

    def close(self) -> None:
        """Nothing is held open."""


def _ponder_fields(scalars: Mapping[str, float]) -> list[str]:
    shown = (
        ("mean steps", names.MEAN_STEPS, ".4f"),
        ("ponder penalty", names.PENALTY, ".6E"),
        ("penalty weight", names.PENALTY_WEIGHT, ".4f"),
        ("jacobi iterations", names.JACOBI_ITERATIONS, ".2f"),
        ("contraction", names.CONTRACTION, ".4f"),
        ("flops saved", names.FLOPS_SAVED, ".4f"),
    )
    return [f"{label}: {scalars[tag]:{form}}" for label, tag, form in shown if tag in scalars]
