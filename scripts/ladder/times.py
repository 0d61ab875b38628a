"""The time of decoding a run of a ladder at the points of its plots, and the file ``decoding_times.json``."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pipeline.config.ponder_section import PonderSection
from pipeline.metrics.records import DecodingSpeed, LossPoint
from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically

if TYPE_CHECKING:
    from megatron_ext.ponder.step_limits import StepLimits

TIMES_FILE = "decoding_times.json"
# Half of them are timed: with fewer, their steps and so the time would differ from those of the whole text.
NUM_TOKENS = 128


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class TimedPoint:
    """A point and its time.

    Attributes:
        step_limit, budget, signal: what identifies the point.
        speed: of one text alone.
    """

    step_limit: int | None
    budget: str | None
    signal: str | None
    speed: DecodingSpeed

    def is_at(self, point: LossPoint) -> bool:
        """Whether it is the time of a point."""
        own = (self.step_limit, self.budget, self.signal)
        return own == (point.step_limit, point.budget, point.signal)


def time_points(run: Path, points: Sequence[LossPoint]) -> None:
    """Decode held-out tokens under the limits of all points in turns, and write the file.

    On a CPU it is the time that one thread computes, which other processes of the machine hardly change; on
    another device it is that of the wall.
    """
    import torch

    from megatron_ext.device import device
    from pipeline.checkpoint.tracker import resolve_checkpoint
    from pipeline.evaluation.opened import opened_checkpoint
    from pipeline.evaluation.timing import decoding_speeds

    with opened_checkpoint(resolve_checkpoint(run)) as opened:
        is_on_cpu = device().type == "cpu"
        if is_on_cpu:
            torch.set_num_threads(1)
        speeds = decoding_speeds(
            opened,
            [_limits_of(point, opened.config.ponder) for point in points],
            batch_sizes=(1,),
            num_tokens=NUM_TOKENS,
            clock=time.process_time if is_on_cpu else time.perf_counter,
        )
    timed = [
        TimedPoint(step_limit=point.step_limit, budget=point.budget, signal=point.signal, speed=speed)
        for point, (speed,) in zip(points, speeds, strict=True)
    ]
    write_atomically(run / TIMES_FILE, TypeAdapter(list[TimedPoint]).dump_json(timed, indent=1) + b"\n")


def _limits_of(point: LossPoint, ponder: PonderSection) -> "StepLimits":
    from megatron_ext.ponder.step_limits import HaltingSignal, StepLimits

    threshold = point.pruning_threshold
    if threshold is None and ponder.method.halts and point.mean_steps == point.step_limit:
        # Otherwise a decoder halts at the threshold of the run.
        threshold = 0.0
    return StepLimits(
        num_steps=point.step_limit if ponder.num_latent_thoughts else None,
        threshold=threshold,
        signal=None if point.signal is None else HaltingSignal(point.signal),
    )


def load_times(run: Path) -> list[TimedPoint]:
    """Read the file of a run; empty where it has not been timed.

    Raises:
        DataError: it is not such a file.
    """
    file = run / TIMES_FILE
    if not file.is_file():
        return []
    try:
        return TypeAdapter(list[TimedPoint]).validate_json(file.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{file} must hold the times of points, but does not ({error.error_count()} problems); remove it "
            "and run `python -m scripts.ladder measure` again"
        ) from error
