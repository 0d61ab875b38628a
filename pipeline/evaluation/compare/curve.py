"""Loss and inference cost of one run under limits on its steps, and the file ``pruning_curve.json``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pipeline.metrics.records import LossPoint
from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically

CURVE_FILE = "pruning_curve.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedPoint:
    """What identifies a point of a curve.

    Attributes:
        step_limit, threshold, signal, budget: see :class:`pipeline.metrics.records.LossPoint`; a point of a
            budget has whatever threshold meets it.
    """

    step_limit: int | None = None
    threshold: float | None = None
    signal: str | None = None
    budget: str | None = None

    def is_at(self, point: LossPoint) -> bool:
        """Whether a point is the one that is wanted."""
        same = (self.step_limit, self.signal, self.budget) == (point.step_limit, point.signal, point.budget)
        return same and (self.budget is not None or self.threshold == point.pruning_threshold)


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class PruningCurve:
    """A run under several limits; also the content of ``pruning_curve.json``.

    Attributes:
        name: of the run.
        iteration: of the checkpoint.
        num_jacobi_iterations: J of the forward.
        num_global_batches: requested size of the held-out text.
        num_tokens: labelled tokens.
        unigram_entropy: of the split, nats; equal splits have equal ones.
        points: of the model's own router or gates, by rising threshold, then by steps and budgets.
        baseline: of halting by a signal that needs no training.
        unmet: budgets that the baseline cannot meet at any threshold.
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
    baseline: tuple[LossPoint, ...] = ()
    unmet: tuple[str, ...] = ()

    @property
    def all_points(self) -> tuple[LossPoint, ...]:
        """Those of the model's own and of the baseline."""
        return (*self.points, *self.baseline)

    def at(self, wanted: Sequence[WantedPoint]) -> tuple[LossPoint, ...] | None:
        """Return the wanted points, or None where one is missing; those that cannot be met are left out."""
        found = []
        for one in wanted:
            points = [point for point in self.all_points if one.is_at(point)]
            if points:
                found.append(points[0])
            elif one.signal is None or one.budget not in self.unmet:
                return None
        return tuple(found)


def save_curve(curve: PruningCurve, path: Path) -> None:
    """Write the file, complete or not at all."""
    write_atomically(path, TypeAdapter(PruningCurve).dump_json(curve, indent=1) + b"\n")


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
