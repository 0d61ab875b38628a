"""TensorBoard files, with the tags of Megatron-LM where it has one."""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_SCALAR, DATA_CLASS_TENSOR
from torch.utils.tensorboard import SummaryWriter, summary

from megatron_ext.ponder.config import Method, Penalty
from pipeline.metrics import names
from pipeline.metrics.descriptions import description_of
from pipeline.metrics.records import TrainingRecord, ValidationRecord
from pipeline.metrics.scalars import training_scalars, validation_scalars

# These functions of torch have no types.
describe_settings: Callable[..., tuple[Any, Any, Any]] = summary.hparams
scalar: Callable[..., Any] = summary.scalar
histogram_raw: Callable[..., Any] = summary.histogram_raw

# Tags by whose newest values runs are ranked.
RANKING_METRICS = (
    names.LM_LOSS_VALIDATION,
    names.on_validation(names.MEAN_STEPS),
    names.on_validation(names.FLOPS_PER_TOKEN_INFER),
    names.TOKENS_PER_SECOND,
)

# Megatron-LM also plots these over consumed samples.
ALSO_VERSUS_SAMPLES = (
    names.LEARNING_RATE,
    names.BATCH_SIZE,
    names.LOSS_SCALE,
    names.WORLD_SIZE,
    names.GRAD_NORM,
    names.NUM_ZEROS,
    names.PARAMS_NORM,
    names.LM_LOSS,
)


class TensorBoardSink:
    """A sink for scalars, the histogram of steps, the layout of charts, and the configuration of the run."""

    def __init__(
        self,
        folder: Path,
        *,
        method: Method,
        num_latent_thoughts: int,
        max_jacobi_iterations: int,
        penalty: Penalty = Penalty.EXPECTED_STEPS,
        sweeps_steps: bool = False,
        purge_step: int | None = None,
    ) -> None:
        """Open ``folder`` for a run.

        Args:
            purge_step: on resume, the next iteration; events from there on are hidden.
        """
        _leave_errors_of_files_to_the_writer()
        writer = SummaryWriter(str(folder), purge_step=purge_step)
        self._writer = cast(_Writer, writer)
        self._described: set[str] = set()
        self._writer.add_custom_scalars(
            custom_scalars_layout(
                method=method,
                num_latent_thoughts=num_latent_thoughts,
                max_jacobi_iterations=max_jacobi_iterations,
                penalty=penalty,
                sweeps_steps=sweeps_steps,
            )
        )

    def write_training(self, record: TrainingRecord) -> None:
        """Write one logging interval."""
        for tag, value in training_scalars(record).items():
            self._write_scalar(tag, value, record.iteration)
            if tag in ALSO_VERSUS_SAMPLES:
                self._write_scalar(names.versus_samples(tag), value, record.consumed_samples)
        if record.steps_count is not None:
            self._write_histogram(names.STEPS_HISTOGRAM, record.steps_count, record.iteration)

    def write_validation(self, record: ValidationRecord) -> None:
        """Write one evaluation."""
        for tag, value in validation_scalars(record).items():
            self._write_scalar(tag, value, record.iteration)
            if tag in (names.LM_LOSS_VALIDATION, names.LM_LOSS_VALIDATION_PPL):
                self._write_scalar(names.versus_samples(tag), value, record.consumed_samples)
        if record.steps_count is not None:
            tag = names.on_validation(names.STEPS_HISTOGRAM)
            self._write_histogram(tag, record.steps_count, record.iteration)
        self._writer.flush()

    def write_configuration(self, settings: Mapping[str, Any], resolved_yaml: str) -> None:
        """Write settings by which runs are compared, flattened to dotted names, and the whole file as text.

        The page "HParams" shows them beside the newest values of `RANKING_METRICS`.
        """
        metrics = dict.fromkeys(RANKING_METRICS, 0.0)
        experiment, start, end = describe_settings(flatten_settings(settings), metrics)
        for part in (experiment, start, end):
            self._writer.file_writer.add_summary(part)
        # Markdown keeps the line breaks of an indented block.
        self._writer.add_text("config", "\n".join(f"    {line}" for line in resolved_yaml.splitlines()), 0)

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def _write_scalar(self, tag: str, value: float, step: int) -> None:
        self._write(tag, scalar(tag, value), step, kind=("scalars", DATA_CLASS_SCALAR))

    def _write_histogram(self, tag: str, counts: Sequence[float], iteration: int) -> None:
        if sum(counts) > 0:
            histogram = histogram_raw(tag, **histogram_of_counts(counts))
            self._write(tag, histogram, iteration, kind=("histograms", DATA_CLASS_TENSOR))

    def _write(self, tag: str, written: Any, step: int, *, kind: tuple[str, int]) -> None:
        # TensorBoard takes the description from the first event of a tag, if that names plugin and class.
        if tag not in self._described:
            self._described.add(tag)
            metadata = written.value[0].metadata
            metadata.summary_description = description_of(tag)
            metadata.plugin_data.plugin_name, metadata.data_class = kind
        self._writer.file_writer.add_summary(written, step)


def histogram_of_counts(counts: Sequence[float]) -> dict[str, Any]:
    """Return the histogram of tokens by their number of steps, with bucket k centred on k.

    Returns:
        Keyword arguments of ``torch.utils.tensorboard.summary.histogram_raw``.
    """
    taken = [step for step, count in enumerate(counts) if count > 0]
    return {
        # The edges of the outer buckets, which TensorBoard cuts there: half of them would be missing.
        "min": taken[0] - 0.5,
        "max": taken[-1] + 0.5,
        "num": sum(counts),
        "sum": sum(step * count for step, count in enumerate(counts)),
        "sum_squares": sum(step * step * count for step, count in enumerate(counts)),
        # The first bucket needs a lower edge, or TensorBoard draws it from minus infinity.
        "bucket_limits": [-0.5, *(step + 0.5 for step in range(len(counts)))],
        "bucket_counts": [0.0, *counts],
    }


@cache
def _leave_errors_of_files_to_the_writer() -> None:
    """Print no traceback for a file that TensorBoard's thread could not write.

    The writer raises the same error in the caller, at its next event or when it is closed.
    """
    before = threading.excepthook

    def report(crash: threading.ExceptHookArgs) -> None:
        is_of_writer = type(crash.thread).__module__.startswith("tensorboard.")
        if not (is_of_writer and isinstance(crash.exc_value, OSError)):
            before(crash)

    threading.excepthook = report


def custom_scalars_layout(
    *,
    method: Method,
    num_latent_thoughts: int,
    max_jacobi_iterations: int,
    penalty: Penalty = Penalty.EXPECTED_STEPS,
    sweeps_steps: bool = False,
) -> dict[str, Any]:
    """Return the charts of related curves for the page "Custom Scalars", those of pondering first.

    Charts of the same title are equal in all runs, whatever their K and J.

    Args:
        method: determines the groups of charts.
        num_latent_thoughts: K.
        max_jacobi_iterations: the largest J of the run.
        penalty: of the run; some have charts of their own.
        sweeps_steps: whether evaluations are repeated with fewer steps.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    has_steps = num_latent_thoughts > 0
    if has_steps and method.halts:
        groups["halting"] = _halting_charts(method, penalty)
    if has_steps and max_jacobi_iterations > 0:
        groups["Jacobi iteration"] = {
            "residual by sweep": [_numbered(names.JACOBI_RESIDUAL, "sweep")],
            "contraction": [_exactly(names.CONTRACTION)],
        }
    groups["loss"] = {
        "training and validation": [_exactly(names.LM_LOSS), _exactly(names.LM_LOSS_VALIDATION)]
    }
    if sweeps_steps:
        tags = [_numbered(names.EVAL_PPL_VS_STEPS, "step")]
        groups["loss"]["held-out perplexity by steps allowed"] = tags
    groups["cost"] = {
        "tokens per second": [_exactly(names.TOKENS_PER_SECOND)],
        "seconds per iteration": [_exactly(names.ITERATION_TIME)],
        "FLOPs per token": [_exactly(names.FLOPS_PER_TOKEN_TRAIN), _exactly(names.FLOPS_PER_TOKEN_INFER)],
    }
    return {
        group: {title: ["Multiline", tags] for title, tags in charts.items()}
        for group, charts in groups.items()
    }


def _halting_charts(method: Method, penalty: Penalty) -> dict[str, list[str]]:
    charts = {
        "mean steps": [_exactly(names.MEAN_STEPS), _exactly(names.on_validation(names.MEAN_STEPS))],
        "active tokens by step": [_numbered(names.ACTIVE_FRACTION, "step")],
        "halting tokens by step": [_numbered(names.HALT_FRACTION, "step")],
        "loss by steps taken": [_numbered(names.NLL_BY_STEPS, "step")],
        "penalty": [_exactly(names.PENALTY), _exactly(names.PENALTY_WEIGHT)],
    }
    decider = method.facts.decider
    if decider is not None and decider.asks_again and not decider.per_iteration:
        return charts | {"probability of continuing by step": [_numbered(names.CONTINUE_PROBABILITY, "step")]}
    if decider is not None and decider.per_iteration:
        return charts | {"gate by iteration": [_numbered(names.GATE, "iteration")]}
    charts |= {
        "tail mass by step": [_numbered(names.TAIL_MASS, "step")],
        "pruned tokens by step": [_numbered(names.PRUNED_FRACTION, "step")],
        "router entropy": [_exactly(names.ROUTER_ENTROPY)],
        "held-out loss of reading one step alone": [
            _numbered(names.STEP_NLL, "step", suffix=names.on_validation(""))
        ],
        "held-out loss with one step more": [
            _exactly(names.LM_LOSS_VALIDATION),
            _exactly(names.on_validation(names.ONE_MORE_NLL)),
        ],
    }
    if not penalty.is_adaptive:
        return charts
    return charts | {
        "accuracy by steps allowed": [_numbered(names.ACCURACY, "step")],
        "penalised tokens by step": [_numbered(names.PENALISED_SHARE, "step")],
    }


def _exactly(tag: str) -> str:
    """Return the expression of one curve: TensorBoard would also show all tags that begin like it."""
    return f"^{re.escape(tag)}$"


def _numbered(family: str, kind: str, *, suffix: str = "") -> str:
    """Return the expression of all curves of a family.

    It is equal in all runs: TensorBoard shows a chart twice if two runs describe it differently.

    Args:
        family: such as ``ponder/gate``.
        kind: what is numbered: step, iteration, sweep.
        suffix: of the tags, behind the number.
    """
    return f"^{re.escape(f'{family}/{kind}_')}[0-9]+{re.escape(suffix)}$"


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | int | float | str]:
    """Flatten nested settings to dotted names; values of other types than TensorBoard's become text."""
    flat: dict[str, bool | int | float | str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


class _Writer(Protocol):
    """The part of torch's untyped ``SummaryWriter`` used here."""

    @property
    def file_writer(self) -> Any: ...

    def add_custom_scalars(self, layout: dict[str, Any]) -> None: ...

    def add_text(self, tag: str, text_string: str, global_step: int) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...
