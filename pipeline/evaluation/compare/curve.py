"""Loss and inference cost of one run over pruning thresholds, and the file ``pruning_curve.json``."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from pipeline.shared.errors import DataError
from pipeline.shared.files import write_atomically

CURVE_FILE = "pruning_curve.json"


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """A run at one threshold.

    Attributes:
        pruning_threshold: tau; None for a method that does not halt.
        loss: held-out cross-entropy, nats per labelled token.
        mean_steps: extra steps per token.
        flops_per_token: of cached decoding, mean over a text of the run's sequence length.
    """

    pruning_threshold: float | None
    loss: float
    mean_steps: float
    flops_per_token: float


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class PruningCurve:
    """A run at several thresholds; also the content of ``pruning_curve.json``.

    Attributes:
        name: of the run.
        iteration: of the checkpoint.
        num_jacobi_iterations: J of the forward.
        num_global_batches: how much of the held-out split was asked for.
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
    points: tuple[CurvePoint, ...]

    def at(self, thresholds: Sequence[float | None]) -> tuple[CurvePoint, ...] | None:
        """Return the points at some thresholds, or None where one is missing."""
        found = {point.pruning_threshold: point for point in self.points}
        if not set(thresholds) <= found.keys():
            return None
        return tuple(found[threshold] for threshold in thresholds)


def save_curve(curve: PruningCurve, path: Path) -> None:
    """Write the file, complete or not at all."""
    write_atomically(path, TypeAdapter(PruningCurve).dump_json(curve, indent=1) + b"\n")


def load_curve(path: Path) -> PruningCurve:
    """Read the file.

    Raises:
        DataError: it is something else.
    """
    try:
        return TypeAdapter(PruningCurve).validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(
            f"{path} must be a pruning curve, but is not ({error.error_count()} problems); remove it and run "
            "the command again"
        ) from error


def front(points: Iterable[CurvePoint]) -> frozenset[CurvePoint]:
    """Return the points that no other one beats: none costs as little at a smaller loss."""
    best: list[CurvePoint] = []
    for point in sorted(points, key=lambda one: (one.flops_per_token, one.loss)):
        if not best or point.loss < best[-1].loss:
            best.append(point)
    return frozenset(best)
