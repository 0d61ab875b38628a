"""What the plots of a ladder show: loss and cost of every run under limits on its steps, by seed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_ext.ponder.config import Reading
from pipeline.config.load import load_config
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account
from pipeline.cost.flops import FlopsAccount
from pipeline.evaluation.compare.curve import CURVE_FILE, load_curve
from pipeline.evaluation.results import LIMITED_EVALUATION_FILE, LossQuartile, load_evaluation
from pipeline.metrics.records import LossPoint
from pipeline.shared.errors import DataError
from scripts.ladder.plan import Ladder
from scripts.ladder.results import CONTROL, RunResult, read_part
from scripts.ladder.times import load_times

CONFIG_FILE = "run_config.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedPoints:
    """One run.

    Attributes:
        control: the loss of the part's control on the same seed; None where that has not run.
        points: those with `step_limit`, of which the last one takes all steps, then those of budgets that
            have been measured.
        quartiles: steps of the tokens where they are pruned, from the easiest to the hardest quarter; empty
            where not measured.
        pruned_at: the budget, or the threshold, at which they were measured.
    """

    control: float | None
    points: Sequence[LossPoint]
    quartiles: Sequence[LossQuartile] = ()
    pruned_at: str = ""

    @property
    def whole(self) -> LossPoint:
        """The point of all steps."""
        return [point for point in self.points if point.budget is None][-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPoints:
    """One row.

    Attributes:
        row: its name.
        training_flops: of the whole training, the base not included.
        seeds: its runs by their seeds.
    """

    row: str
    training_flops: float
    seeds: Mapping[int, SeedPoints]


def collect_points(folder: Path, ladder: Ladder, part_name: str) -> list[RowPoints]:
    """Read what is known of the reported runs of a part."""
    rows = read_part(folder, ladder, part_name)
    control = {seed: run.loss for seed, run in rows.get(CONTROL, {}).items()}
    return [
        RowPoints(
            row=row,
            training_flops=sum(run.training_flops() for run in runs.values()) / len(runs),
            seeds={seed: _seed_points(run, control.get(seed)) for seed, run in runs.items()},
        )
        for row, runs in rows.items()
    ]


def points_of(run: RunResult) -> tuple[LossPoint, ...]:
    """Return the loss of a run with fixed numbers of steps and within budgets.

    Losses with fixed numbers of steps are those that the run recorded, so that they need no measurement.

    Raises:
        DataError: the configuration of the run does not tell the size of the vocabulary.
    """
    file = run.folder / CURVE_FILE
    measured = load_curve(file).all_points if file.is_file() else ()
    times = load_times(run.folder)
    points = (*_fixed_points(run, measured), *(point for point in measured if point.budget is not None))
    return tuple(
        replace(point, speeds=tuple(timed.speed for timed in times if timed.is_at(point))) for point in points
    )


def _fixed_points(run: RunResult, measured: Sequence[LossPoint]) -> Iterator[LossPoint]:
    """Yield the points of limits on the number of steps, by rising steps; the last one is the whole model."""
    config = load_config(run.folder / CONFIG_FILE)
    account = flops_account(config, _vocab_size(run, config))
    most = account.num_latent_thoughts
    losses = {point.step_limit: point.loss for point in measured if point.step_limit is not None}
    losses |= dict(enumerate(run.losses_by_steps)) | {most: run.loss}
    recorded = run.costs_by_steps if _ends_early(config, account) else {}
    for limit, loss in sorted(losses.items()):
        mean_steps, flops = recorded.get(
            limit, (float(limit), account.limited_to(limit).inference_per_token(limit))
        )
        yield LossPoint(
            step_limit=limit,
            loss=loss,
            mean_steps=mean_steps,
            flops_per_token=flops,
        )


def _ends_early(config: RunConfig, account: FlopsAccount) -> bool:
    """Whether tokens halt in an evaluation without a threshold too; a mixture reads all steps."""
    reads_all = account.facts.weighs_slots and config.ponder.reading is not Reading.LAST_STEP
    return account.halts and not reads_all


def _vocab_size(run: RunResult, config: RunConfig) -> int:
    if config.model.vocab_size is None:
        raise DataError(
            f"{run.folder / CONFIG_FILE} must set model.vocab_size for the cost of a token, but does not; "
            "set it in the recipe of the ladder"
        )
    return config.model.vocab_size


def _seed_points(run: RunResult, control: float | None) -> SeedPoints:
    points, file = points_of(run), run.folder / LIMITED_EVALUATION_FILE
    if not file.is_file():
        return SeedPoints(control=control, points=points)
    pruned = load_evaluation(file)
    budgets = {point.pruning_threshold: point.budget for point in points if point.signal is None}
    return SeedPoints(
        control=control,
        points=points,
        quartiles=pruned.loss_quartiles,
        pruned_at=budgets.get(pruned.pruning_threshold) or f"tau {pruned.pruning_threshold:g}",
    )
