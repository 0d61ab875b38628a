"""Loss and inference cost of one run over pruning thresholds, and the file ``pruning_curve.json``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pipeline.metrics.records import LossPoint
from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically

CURVE_FILE = "pruning_curve.json"
# The points of a curve differ in their thresholds alone.
NOT_WRITTEN = {"points": {"__all__": {"step_limit"}}}


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class PruningCurve:
    """A run at several thresholds; also the content of ``pruning_curve.json``.

    Attributes:
        name: of the run.
        iteration: of the checkpoint.
        num_jacobi_iterations: J of the forward.
        num_global_batches: requested size of the held-out text.
        num_tokens: labelled tokens.
        unigram_entropy: of the split, nats; equal splits have equal ones.
        points: by rising threshold.
    """

    format: Literal["megaponder.pruning_curve/1"] = "megaponder.pruning_curve/1"
    name: str
    method: str
    num_latent_thoughts: int
    iteration: int
    num_jacobi_iterations: int
    num_global_batches: int
    num_tokens: int
    unigram_entropy: float
    points: tuple[LossPoint, ...]

    def at(self, thresholds: Sequence[float | None]) -> tuple[LossPoint, ...] | None:
        """Return the points at some thresholds, or None where one is missing."""
        found = {point.pruning_threshold: point for point in self.points}
        if not set(thresholds) <= found.keys():
            return None
        return tuple(found[threshold] for threshold in thresholds)


def save_curve(curve: PruningCurve, path: Path) -> None:
    """Write the file, complete or not at all."""
    write_atomically(path, TypeAdapter(PruningCurve).dump_json(curve, indent=1, exclude=NOT_WRITTEN) + b"\n")


def load_curve(path: Path) -> PruningCurve:
    """Read the file.

    Raises:
        DataError: it is not a pruning curve.
    """
    try:
        return TypeAdapter(PruningCurve).validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path} must be a pruning curve, but is not ({error.error_count()} problems); remove it and run "
            "the command again"
        ) from error


def front(points: Iterable[LossPoint]) -> frozenset[LossPoint]:
    """Return the Pareto front: the points for which no other one costs as little at a smaller loss."""
    best: list[LossPoint] = []
    for point in sorted(points, key=lambda one: (one.flops_per_token, one.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return frozenset(best)
