"""Get the points of a run, from files in its folder or by evaluating its checkpoint."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_ext.ponder.step_limits import UNLIMITED, HaltingSignal, StepLimits
from pipeline.checkpoint.state import read_train_state
from pipeline.checkpoint.stored_config import stored_checkpoint
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account
from pipeline.data.unigram import unigram_entropy
from pipeline.evaluation.budget import Budget
from pipeline.evaluation.compare.curve import CURVE_FILE, PruningCurve, WantedPoint, load_curve, save_curve
from pipeline.evaluation.opened import OpenedCheckpoint, opened_checkpoint
from pipeline.evaluation.points import loss_point
from pipeline.evaluation.results import EVALUATION_FILE, load_evaluation
from pipeline.evaluation.timing import decoding_speeds
from pipeline.evaluation.under_limits import HeldoutText, LimitedResult
from pipeline.metrics.records import LossPoint
from pipeline.shared.errors import DataError
from pipeline.step.build import open_heldout_split, vocab_size_of
from pipeline.step.megatron_config import ponder_config

logger = logging.getLogger(__name__)

DEFAULT_THRESHOLDS = (1e-4, 1e-3, 1e-2, 0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRun:
    """A run on disk.

    Attributes:
        folder: of the run, with the files about it.
        checkpoint: the ``iter_`` folder that is taken.
        config: of the run.
        iteration: of the checkpoint.
    """

    folder: Path
    checkpoint: Path
    config: RunConfig
    iteration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The points that are wanted of a run; where a method cannot have one, it is left out.

    Attributes:
        thresholds: tau; empty takes the usual ones and the run's own.
        max_steps: limits on the steps.
        budgets: steps or shares of the operations.
        signal: what the baseline halts by; None: no baseline.
        num_global_batches: of the held-out split; None takes the run's ``evaluation.iters``.
        reevaluate: evaluate even where files have the points.
        timing: measure the time of decoding at every point.
    """

    thresholds: tuple[float, ...] = ()
    max_steps: tuple[int, ...] = ()
    budgets: tuple[Budget, ...] = ()
    signal: HaltingSignal | None = HaltingSignal.ENTROPY
    num_global_batches: int | None = None
    reevaluate: bool = False
    timing: bool = True

    def points_of(self, config: RunConfig) -> tuple[WantedPoint, ...]:
        """Points of the model's own router or gates, or of all steps where it has none."""
        ponder = config.ponder
        limited = [
            WantedPoint(step_limit=number) for number in self.max_steps if not problem_of(number, config)
        ]
        if not ponder.method.halts:
            return (WantedPoint(), *limited)
        thresholds = sorted(set(self.thresholds) or {*DEFAULT_THRESHOLDS, ponder.pruning_threshold})
        return (
            *(WantedPoint(threshold=threshold) for threshold in thresholds),
            *limited,
            *(WantedPoint(budget=str(budget)) for budget in self.budgets),
        )

    def baseline_of(self, config: RunConfig) -> tuple[WantedPoint, ...]:
        """Points of the baseline: at the budgets, or at quarters of the steps."""
        ponder = config.ponder
        if self.signal is None or not ponder.method.has_sweeps or ponder.num_latent_thoughts == 0:
            return ()
        quarters = (Budget(mean_steps=ponder.num_latent_thoughts * share) for share in (0.25, 0.5, 0.75))
        return tuple(
            WantedPoint(signal=self.signal, budget=str(budget)) for budget in self.budgets or quarters
        )

    def batches_of(self, config: RunConfig) -> int:
        """Global batches of the held-out split."""
        return self.num_global_batches or config.evaluation.iters


def problem_of(num_steps: int, config: RunConfig) -> str | None:
    """Return why the model of a run cannot be limited to a number of steps."""
    own = ponder_config(config.ponder, config.model.vocab_size or 0)
    return StepLimits(num_steps=num_steps).problem(own)


def find_run(path: Path) -> FoundRun:
    """Find the newest checkpoint of a run.

    Args:
        path: folder of a run, of its checkpoints, or of one checkpoint.
    Raises:
        CheckpointError: there is none.
    """
    checkpoint = resolve_checkpoint(path)
    config = stored_checkpoint(checkpoint).config
    return FoundRun(
        folder=config.output_dir,
        checkpoint=checkpoint,
        config=config,
        iteration=read_train_state(checkpoint).iteration,
    )


def curve_of(
    run: FoundRun, wanted: Wanted, *, speaks: bool, advance: Callable[[], None] = lambda: None
) -> PruningCurve:
    """Read the points of a run from its folder, or evaluate and write them there; all ranks call it together.

    Args:
        run: which.
        wanted: which points.
        speaks: whether this rank writes files.
        advance: called after every threshold that is evaluated.
    Raises:
        CheckpointError, ConfigError, DataError: checkpoint, configuration or data are unusable.
    """
    known = None if wanted.reevaluate else _from_files(run, wanted)
    if known is not None:
        return known
    logger.info("%s: evaluated now, on %s", run.folder, run.checkpoint.name)
    with opened_checkpoint(run.checkpoint) as opened:
        curve = _evaluated(opened, wanted, advance)
    if speaks:
        run.folder.mkdir(parents=True, exist_ok=True)
        save_curve(curve, run.folder / CURVE_FILE)
    return curve


def _from_files(run: FoundRun, wanted: Wanted) -> PruningCurve | None:
    """Return an earlier curve of the same checkpoint and text, or the evaluation where nothing is pruned."""
    batches, sweeps = wanted.batches_of(run.config), run.config.ponder.num_jacobi_iterations
    file = run.folder / CURVE_FILE
    if file.is_file():
        curve = load_curve(file)
        points, baseline = curve.at(wanted.points_of(run.config)), curve.at(wanted.baseline_of(run.config))
        same = (curve.iteration, curve.num_jacobi_iterations, curve.num_global_batches)
        if points is not None and baseline is not None and same == (run.iteration, sweeps, batches):
            known = replace(curve, points=points, baseline=baseline)
            if not wanted.timing or all(point.speeds for point in known.all_points):
                logger.info("%s: from %s", run.folder, CURVE_FILE)
                return known
    only_all_steps = (wanted.points_of(run.config), wanted.baseline_of(run.config)) == ((WantedPoint(),), ())
    return _from_evaluation(run, wanted) if only_all_steps else None


def _from_evaluation(run: FoundRun, wanted: Wanted) -> PruningCurve | None:
    num_global_batches = wanted.batches_of(run.config)
    file = run.folder / EVALUATION_FILE
    if not file.is_file():
        return None
    found, ponder = load_evaluation(file), run.config.ponder
    if (found.iteration, found.num_jacobi_iterations) != (run.iteration, ponder.num_jacobi_iterations):
        return None
    if not found.is_of_whole_model or (wanted.timing and not found.speeds):
        return None
    heldout, training = open_heldout_split(run.config), run.config.training
    samples = min(len(heldout), num_global_batches * training.global_batch_size)
    if not _is_of(found.num_tokens, samples, training.seq_length, training.global_batch_size):
        return None
    logger.info("%s: from %s", run.folder, EVALUATION_FILE)
    account = flops_account(run.config, vocab_size_of(run.config, heldout))
    return PruningCurve(
        name=run.config.name,
        method=ponder.method,
        num_latent_thoughts=ponder.num_latent_thoughts,
        iteration=run.iteration,
        num_jacobi_iterations=ponder.num_jacobi_iterations,
        num_global_batches=num_global_batches,
        num_tokens=found.num_tokens,
        unigram_entropy=found.unigram_entropy,
        points=(replace(loss_point(UNLIMITED, found.loss, None, account), speeds=found.speeds),),
    )


def _is_of(num_tokens: int, num_samples: int, seq_length: int, global_batch_size: int) -> bool:
    """Whether so many labelled tokens can be those of so many samples, to a global batch.

    The file does not record the requested size. A few tokens have no label, so a long evaluation may look a
    batch too short; it is then repeated, which costs time only.
    """
    num_batches = -(-num_tokens // (global_batch_size * seq_length))
    return num_batches == -(-num_samples // global_batch_size)


def _evaluated(opened: OpenedCheckpoint, wanted: Wanted, advance: Callable[[], None]) -> PruningCurve:
    config, ponder = opened.config, opened.config.ponder
    measured = _Measured(HeldoutText(opened, wanted.batches_of(config)), advance)
    points = [measured.point(one) for one in wanted.points_of(config)]
    baseline = [measured.point(one) for one in wanted.baseline_of(config)]
    if wanted.timing:
        points, baseline = measured.timed(points), measured.timed(baseline)
    return PruningCurve(
        name=config.name,
        method=ponder.method,
        num_latent_thoughts=ponder.num_latent_thoughts,
        iteration=opened.state.iteration,
        num_jacobi_iterations=ponder.num_jacobi_iterations,
        num_global_batches=wanted.batches_of(config),
        num_tokens=measured.num_tokens,
        unigram_entropy=unigram_entropy(opened.heldout),
        points=tuple(point for point in points if point is not None),
        baseline=tuple(point for point in baseline if point is not None),
        unmet=tuple(measured.unmet),
    )


class _Measured:
    """Evaluates points on one text.

    Attributes:
        num_tokens: labelled tokens of the text.
        unmet: budgets that the baseline did not meet.
    """

    def __init__(self, text: HeldoutText, advance: Callable[[], None]) -> None:
        self.num_tokens = 0
        self.unmet: list[str] = []
        self._text, self._advance = text, advance
        self._unpruned: dict[StepLimits, LimitedResult] = {}
        self._limits: dict[LossPoint, StepLimits] = {}

    def point(self, wanted: WantedPoint) -> LossPoint | None:
        """Evaluate a point; None where the baseline cannot meet the budget."""
        signal = None if wanted.signal is None else HaltingSignal(wanted.signal)
        limits = StepLimits(num_steps=wanted.step_limit, threshold=wanted.threshold, signal=signal)
        budget = None if wanted.budget is None else Budget.parse(wanted.budget)
        try:
            result = self._text.evaluate(limits) if budget is None else self._meet(budget, limits)
        except DataError as error:
            if signal is None or budget is None:
                raise
            logger.warning("halting by %s: %s", signal, error)
            self.unmet.append(str(budget))
            return None
        finally:
            self._advance()
        self.num_tokens = result.num_tokens
        point = self._text.point(result, budget=budget)
        self._limits[point] = result.limits
        return point

    def timed(self, points: Sequence[LossPoint | None]) -> list[LossPoint | None]:
        """Add the speeds of decoding at each point."""
        known = [point for point in points if point is not None]
        speeds = decoding_speeds(self._text.opened, [self._limits[point] for point in known])
        return [replace(point, speeds=of_point) for point, of_point in zip(known, speeds, strict=True)]

    def _meet(self, budget: Budget, limits: StepLimits) -> LimitedResult:
        if limits not in self._unpruned:
            self._unpruned[limits] = self._text.record(limits)
        return self._text.meet(budget, limits, unpruned=self._unpruned[limits])
