"""Means over the seeds of a ladder's rows.

Seeds differ more from each other than rows do, so that rows are compared by their difference to the control
on the same seed, where the control has run.
"""

import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from pipeline.metrics.records import LossPoint
from scripts.ladder.points import RowPoints, SeedPoints

CostOf = Callable[[LossPoint], float | None]


class Limit(StrEnum):
    """What keeps a token from taking all steps."""

    ROUTER = "learned halting"
    BASELINE = "halting by entropy, not trained"
    FIXED = "the same steps for all tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanPoint:
    """A point of a plot.

    Attributes:
        x, y: means over seeds.
        spread: standard deviation of y; 0 for one seed.
        num_seeds: how many.
        name: the limit, threshold or budget.
    """

    x: float
    y: float
    spread: float
    num_seeds: int
    name: str


def flops_of(point: LossPoint) -> float | None:
    """Return the inference FLOPs per token of a point."""
    return point.flops_per_token


def milliseconds_of(point: LossPoint) -> float | None:
    """Return the measured milliseconds per token of one text alone, or None where it was not timed."""
    alone = [speed.milliseconds_per_token for speed in point.speeds if speed.batch_size == 1]
    return alone[0] if alone else None


def compared(rows: Sequence[RowPoints]) -> list[RowPoints]:
    """Return rows with losses relative to the control, on its seeds; as they are where it has not run."""
    if not has_control(rows):
        return list(rows)
    paired = [replace(row, seeds=dict(_relative(row))) for row in rows]
    return [row for row in paired if row.seeds]


def _relative(row: RowPoints) -> Iterator[tuple[int, SeedPoints]]:
    for seed, run in row.seeds.items():
        if run.control is not None:
            points = [replace(point, loss=point.loss - run.control) for point in run.points]
            yield seed, replace(run, points=points)


def has_control(rows: Sequence[RowPoints]) -> bool:
    """Whether the control has run on any seed."""
    return any(run.control is not None for row in rows for run in row.seeds.values())


def measured_seeds(row: RowPoints) -> RowPoints:
    """Return a row with the seeds that have points of budgets; all its curves are then of the same."""
    seeds = {
        seed: run for seed, run in row.seeds.items() if any(point.budget is not None for point in run.points)
    }
    return replace(row, seeds=seeds)


def mean_curve(row: RowPoints, limit: Limit, cost_of: CostOf) -> list[MeanPoint]:
    """Return the points of a row under one kind of limit, by rising cost.

    Only seeds count that were measured under this limit, and only points that all of these have; what a point
    costs is the mean over those of them whose cost is known. Curves of budgets end at the point of all steps.
    """
    of_seeds = [points for points in (_points_under(run, limit) for run in row.seeds.values()) if points]
    means = []
    for setting in of_seeds[0] if of_seeds else ():
        found = [points[setting] for points in of_seeds if setting in points]
        costs = [cost for cost in map(cost_of, found) if cost is not None]
        if costs and len(found) == len(of_seeds):
            means.append(mean_point(_name_of(found[0]), costs, [point.loss for point in found]))
    return sorted(means, key=lambda point: point.x)


def quartile_curve(row: RowPoints) -> list[MeanPoint]:
    """Return the mean steps of each quarter of the tokens by their mean loss; empty where not measured.

    Only seeds count that were pruned at one budget or threshold, that of most of them; it is the name.
    """
    measured = [run for run in row.seeds.values() if run.quartiles]
    if not measured:
        return []
    ((name, _),) = Counter(run.pruned_at for run in measured).most_common(1)
    of_seeds = [run.quartiles for run in measured if run.pruned_at == name]
    return [
        mean_point(name, [part.mean_nll for part in quarter], [part.mean_steps for part in quarter])
        for quarter in zip(*of_seeds, strict=True)
    ]


def mean_point(name: str, x: Sequence[float], y: Sequence[float]) -> MeanPoint:
    """Return the means over seeds; ``x`` may be known of fewer seeds than ``y``."""
    spread = statistics.stdev(y) if len(y) > 1 else 0.0
    return MeanPoint(x=statistics.fmean(x), y=statistics.fmean(y), spread=spread, num_seeds=len(y), name=name)


def _name_of(point: LossPoint) -> str:
    if point.budget is not None:
        return point.budget
    return f"{point.step_limit} step{'' if point.step_limit == 1 else 's'}"


def _points_under(run: SeedPoints, limit: Limit) -> Mapping[Hashable, LossPoint]:
    """Return the points of a run under one kind of limit, by what they have in common over seeds."""
    if limit is Limit.FIXED:
        return {point.step_limit: point for point in run.points if point.budget is None}
    found: dict[Hashable, LossPoint] = {
        point.budget: point
        for point in run.points
        if point.budget is not None and (point.signal is not None) == (limit is Limit.BASELINE)
    }
    return {**found, None: run.whole} if found else {}
