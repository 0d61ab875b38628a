"""Get the points of a run, from files in its folder or by evaluating its checkpoint."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits
from pipeline.checkpoint.state import read_train_state
from pipeline.checkpoint.stored_config import CHECKPOINTS, stored_checkpoint
from pipeline.checkpoint.tracker import resolve_checkpoint
from pipeline.config.schema import RunConfig
from pipeline.cost.account import flops_account
from pipeline.data.unigram import unigram_entropy
from pipeline.evaluation.compare.curve import CURVE_FILE, PruningCurve, load_curve, save_curve
from pipeline.evaluation.opened import OpenedCheckpoint, opened_checkpoint
from pipeline.evaluation.points import counted_steps, evaluate_under, loss_point
from pipeline.evaluation.results import EVALUATION_FILE, load_evaluation
from pipeline.step.build import heldout_batches, open_heldout_split, vocab_size_of

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
    """The points that are wanted of a run.

    Attributes:
        thresholds: tau; empty takes the usual ones and the run's own.
        num_global_batches: of the held-out split; None takes the run's ``evaluation.iters``.
        reevaluate: evaluate even where files have the points.
    """

    thresholds: tuple[float, ...] = ()
    num_global_batches: int | None = None
    reevaluate: bool = False

    def thresholds_of(self, config: RunConfig) -> tuple[float | None, ...]:
        """Thresholds that make sense for a run, rising."""
        ponder = config.ponder
        if not ponder.method.halts:
            return (None,)
        return tuple(sorted(set(self.thresholds) or {*DEFAULT_THRESHOLDS, ponder.pruning_threshold}))

    def batches_of(self, config: RunConfig) -> int:
        """Global batches of the held-out split."""
        return self.num_global_batches or config.evaluation.iters


def find_run(path: Path) -> FoundRun:
    """Find the newest checkpoint of a run.

    Args:
        path: folder of a run, of its checkpoints, or of one checkpoint.
    Raises:
        CheckpointError: there is none.
    """
    checkpoints = path / CHECKPOINTS if (path / CHECKPOINTS).is_dir() else path
    checkpoint = resolve_checkpoint(checkpoints)
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
        points = curve.at(wanted.thresholds_of(run.config))
        same = (curve.iteration, curve.num_jacobi_iterations, curve.num_global_batches)
        if points is not None and same == (run.iteration, sweeps, batches):
            logger.info("%s: from %s", run.folder, CURVE_FILE)
            return replace(curve, points=points)
    return None if run.config.ponder.method.halts else _from_evaluation(run, batches)


def _from_evaluation(run: FoundRun, num_global_batches: int) -> PruningCurve | None:
    file = run.folder / EVALUATION_FILE
    if not file.is_file():
        return None
    found, ponder = load_evaluation(file), run.config.ponder
    if (found.iteration, found.num_jacobi_iterations) != (run.iteration, ponder.num_jacobi_iterations):
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
        points=(loss_point(UNLIMITED, found.loss, None, account),),
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
    account = flops_account(config, vocab_size_of(config, opened.heldout))
    batches = heldout_batches(
        config, opened.heldout, opened.groups, max_global_batches=wanted.batches_of(config)
    )
    points, num_tokens = [], 0
    for threshold in wanted.thresholds_of(config):
        limits = StepLimits(threshold=threshold)
        found = evaluate_under(
            limits,
            opened.module,
            batches,
            num_jacobi_iterations=ponder.num_jacobi_iterations,
            groups=opened.groups,
        )
        assert found is not None, "nothing cuts this evaluation short"
        num_tokens = int(found.sums["labelled_tokens"][0])
        points.append(loss_point(limits, found.loss, counted_steps(limits, opened.module, found), account))
        advance()
    return PruningCurve(
        name=config.name,
        method=ponder.method,
        num_latent_thoughts=ponder.num_latent_thoughts,
        iteration=opened.state.iteration,
        num_jacobi_iterations=ponder.num_jacobi_iterations,
        num_global_batches=wanted.batches_of(config),
        num_tokens=num_tokens,
        unigram_entropy=unigram_entropy(opened.heldout),
        points=tuple(points),
    )
