"""The curves of a record by tag, as every sink but the log line writes them."""

from collections.abc import Sequence

from pipeline.metrics import names
from pipeline.metrics.records import LossPoint, TrainingRecord, ValidationRecord

__all__ = ["sweep_scalars", "training_scalars", "validation_scalars"]


def training_scalars(record: TrainingRecord) -> dict[str, float]:
    """Return every curve of an interval by its tag, without those that were not measured."""
    scalars: dict[str, float | None] = {
        names.LM_LOSS: record.loss,
        names.LEARNING_RATE: record.learning_rate,
        names.DECOUPLED_LEARNING_RATE: record.decoupled_learning_rate,
        names.MUON_LEARNING_RATE: record.muon_learning_rate,
        names.BATCH_SIZE: record.global_batch_size,
        names.LOSS_SCALE: record.loss_scale,
        names.WORLD_SIZE: record.world_size,
        names.GRAD_NORM: record.grad_norm,
        names.NUM_ZEROS: record.num_zeros,
        names.PARAMS_NORM: record.params_norm,
        names.ITERATION_TIME: record.elapsed_seconds,
        names.THROUGHPUT: record.tflops_per_device,
        names.TOKENS_PER_SECOND: record.tokens_per_second,
        names.MFU: record.mfu,
        names.HFU: record.hfu,
        names.MEMORY: record.memory_bytes,
    }
    measured = {tag: float(value) for tag, value in scalars.items() if value is not None}
    return measured | dict(record.scalars)


def validation_scalars(record: ValidationRecord) -> dict[str, float]:
    """Return every curve of an evaluation by its tag."""
    headline = {names.LM_LOSS_VALIDATION: record.loss, names.LM_LOSS_VALIDATION_PPL: record.perplexity}
    statistics = {names.on_validation(tag): value for tag, value in record.scalars.items()}
    return headline | statistics | sweep_scalars(record.sweep)


def sweep_scalars(points: Sequence[LossPoint]) -> dict[str, float]:
    """Return every curve of a sweep by its tag."""
    scalars = {}
    for point in points:
        if point.step_limit is not None:
            scalars[names.per_step(names.EVAL_PPL_VS_STEPS, point.step_limit)] = point.perplexity
        elif point.pruning_threshold is not None:
            tau = point.pruning_threshold
            scalars[names.per_tau(names.EVAL_PPL_VS_TAU, tau)] = point.perplexity
            scalars[names.per_tau(names.EVAL_STEPS_VS_TAU, tau)] = point.mean_steps
    return scalars
