"""The records of a run's measurements, and the interface of the sinks that they are written to."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from pydantic import ConfigDict, with_config

from pipeline.shared.units import render_flops

# The perplexity of larger losses would be meaningless; Megatron-LM caps at the same value.
MAX_LOSS_FOR_PERPLEXITY = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecord:
    """One logging interval of training.

    ``loss`` is the mean in nats per labelled token over the interval, ``elapsed_seconds`` the mean per
    iteration, ``tflops_per_device`` model TFLOP/s (without recomputation); ``mfu`` and ``hfu`` are shares of
    the device's dense peak, for the operations of the method and for those computed. ``None`` means not
    measured, or an unknown peak.
    ``data_hash`` identifies the tokens of the last iteration's global batch. ``scalars`` are further curves
    by tag, ``steps_count`` the number of tokens by the number of steps they took. ``memory_bytes`` is the
    most that this rank has allocated on its device; a CPU does not measure it.
    """

    iteration: int
    total_iterations: int
    consumed_samples: int
    elapsed_seconds: float
    tokens_per_second: float
    learning_rate: float
    global_batch_size: int
    world_size: int
    loss: float
    decoupled_learning_rate: float | None = None
    muon_learning_rate: float | None = None
    tflops_per_device: float | None = None
    mfu: float | None = None
    hfu: float | None = None
    loss_scale: float = 1.0
    grad_norm: float | None = None
    num_zeros: int | None = None
    params_norm: float | None = None
    skipped_iterations: int = 0
    nan_iterations: int = 0
    data_hash: str | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    steps_count: Sequence[float] | None = None
    memory_bytes: int | None = None


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSpeed:
    """The measured time of decoding some held-out tokens, with so many texts together.

    Attributes:
        batch_size: texts.
        milliseconds_per_token: until each text has its next token.
        tokens_per_second: of all texts together.
        mean_steps: extra steps that the timed tokens took.
        flops_per_token: at these steps, after as many tokens as the timed ones had before them.
        gain_reached: share of the time saved, against all steps, over the share of FLOPs saved, in the median
            round; None where no FLOPs are saved.
        gain_range: the same at the quartiles of the rounds; None where it was not measured.
    """

    batch_size: int
    milliseconds_per_token: float
    tokens_per_second: float
    mean_steps: float
    flops_per_token: float
    gain_reached: float | None
    gain_range: tuple[float, float] | None = None

    @property
    def gain(self) -> str:
        """The share of the FLOPs saved that is saved in time, with its range; empty where none are saved."""
        if self.gain_reached is None:
            return ""
        if self.gain_range is None:
            return f"{self.gain_reached:.0%}"
        lower, upper = self.gain_range
        return f"{self.gain_reached:.0%} ({lower:.0%} to {upper:.0%})"

    @property
    def summary(self) -> str:
        """Time, speed, and the share of the FLOPs saved that is saved in time."""
        gain = f"; {self.gain} of the FLOPs saved in time" if self.gain else ""
        return (
            f"{self.milliseconds_per_token:.2f} ms/token, {self.tokens_per_second:,.0f} tokens/s "
            f"at {self.mean_steps:.2f} steps{gain}"
        )


# The points of an evaluation's `worth`, in their order.
WORTH_NAMES = ("all steps", "steps above tau", "no step")


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """The held-out loss under a limit on the steps of tokens, and what decoding costs there.

    Attributes:
        step_limit: tokens take at most so many steps; None where they are not limited.
        pruning_threshold: tokens halt at this threshold; None where nothing is pruned.
        signal: what is compared with the threshold, by name; None: the model's own router or gates.
        budget: that the threshold was chosen for, as it was written; None where it was given.
        loss: nats per labelled token.
        mean_steps: extra steps per token.
        flops_per_token: of cached decoding, mean over a text of the run's sequence length.
        speeds: measured, by batch size; empty where nothing was timed.
    """

    step_limit: int | None = None
    pruning_threshold: float | None = None
    signal: str | None = None
    budget: str | None = None
    loss: float
    mean_steps: float
    flops_per_token: float
    speeds: tuple[DecodingSpeed, ...] = ()

    @property
    def cost(self) -> str:
        """Mean steps, operations and time of a token, for a table."""
        alone = [speed for speed in self.speeds if speed.batch_size == 1]
        time = f", {alone[0].milliseconds_per_token:.1f} ms" if alone else ""
        return f"{self.mean_steps:.2f} steps, {render_flops(self.flops_per_token)}{time} per token"

    @property
    def kind(self) -> Literal["steps", "tau"]:
        """Which limit it is."""
        return "tau" if self.step_limit is None else "steps"

    @property
    def value(self) -> float | None:
        """The limit."""
        return self.pruning_threshold if self.step_limit is None else self.step_limit

    @property
    def perplexity(self) -> float:
        """The exponential of the loss, capped where it would overflow."""
        return perplexity_of(self.loss)


def perplexity_of(loss: float) -> float:
    """Return the exponential of a loss, capped where it would overflow."""
    return math.nan if math.isnan(loss) else math.exp(min(MAX_LOSS_FOR_PERPLEXITY, loss))


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationRecord:
    """One evaluation on the held-out split, made after ``iteration``; ``loss`` in nats per labelled token.

    ``sweep`` has the losses under limits, if they were measured.
    """

    iteration: int
    consumed_samples: int
    loss: float
    scalars: Mapping[str, float] = field(default_factory=dict)
    steps_count: Sequence[float] | None = None
    sweep: Sequence[LossPoint] = ()

    @property
    def perplexity(self) -> float:
        """The exponential of the loss, capped where it would overflow."""
        return perplexity_of(self.loss)


class MetricsSink(Protocol):
    """A destination of records."""

    def write_training(self, record: TrainingRecord) -> None:
        """Write one logging interval."""

    def write_validation(self, record: ValidationRecord) -> None:
        """Write one evaluation."""

    def close(self) -> None:
        """Flush and close files."""


class SinkGroup:
    """Several sinks as one. An empty group is the sink of ranks that do not write."""

    def __init__(self, sinks: Sequence[MetricsSink] = ()) -> None:
        """Write to ``sinks``, in this order."""
        self._sinks = tuple(sinks)

    def write_training(self, record: TrainingRecord) -> None:
        """Write one logging interval to every sink."""
        for sink in self._sinks:
            sink.write_training(record)

    def write_validation(self, record: ValidationRecord) -> None:
        """Write one evaluation to every sink."""
        for sink in self._sinks:
            sink.write_validation(record)

    def close(self) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()
