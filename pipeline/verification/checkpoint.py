"""Verify a checkpoint on held-out text of its run (`megaponder verify`)."""

from collections.abc import Callable, Sequence

from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.verification.result import VerifiedCheckpoint
from pipeline.verification.texts import heldout_rows
from pipeline.verification.verify import verify_model

# The logits of every forward and of a decoding are held for so many rows at once.
ROWS_AT_ONCE = 4


def verify_checkpoint(
    checkpoint: OpenedCheckpoint,
    *,
    num_rows: int,
    num_tokens: int,
    thresholds: Sequence[float | None],
    sweeps: Sequence[int],
    bound: float,
    run_bound: float | None,
    advance: Callable[[], None] = lambda: None,
) -> VerifiedCheckpoint:
    """Compare the training forward with cached decoding; all ranks call it together.

    Args:
        checkpoint: the model.
        num_rows: rows of the held-out split, at most all.
        num_tokens: tokens of each row, at most all.
        thresholds, sweeps: see :func:`pipeline.verification.verify.verify_model`.
        bound: largest difference of logits with the most sweeps that passes.
        run_bound: the same with the run's own J, or None.
        advance: called after every part of the work, :func:`num_parts` times.
    """
    config = checkpoint.config
    run_sweeps = config.ponder.num_jacobi_iterations
    verification = verify_model(
        checkpoint.module,
        heldout_rows(
            checkpoint.heldout,
            num_rows=num_rows,
            num_tokens=num_tokens,
            seed=config.seed,
            rows_at_once=ROWS_AT_ONCE,
        ),
        thresholds=thresholds,
        sweeps=sweeps,
        advance=advance,
    )
    # Written so that a NaN fails.
    passes = verification.settled.max_error <= bound
    if run_bound is not None:
        passes = passes and verification.comparison(run_sweeps).max_error <= run_bound
    return VerifiedCheckpoint(
        checkpoint=str(checkpoint.folder),
        iteration=checkpoint.state.iteration,
        method=config.ponder.method,
        precision=config.training.precision,
        num_latent_thoughts=config.ponder.num_latent_thoughts,
        run_jacobi_iterations=run_sweeps,
        bound=bound,
        run_bound=run_bound,
        passes=passes,
        verification=verification,
    )


def num_parts(checkpoint: OpenedCheckpoint, *, num_rows: int, num_thresholds: int) -> int:
    """Return how often :func:`verify_checkpoint` will advance."""
    return -(-min(num_rows, len(checkpoint.heldout)) // ROWS_AT_ONCE) * num_thresholds
