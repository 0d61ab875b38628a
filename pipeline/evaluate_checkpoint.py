"""Measure a checkpoint on held-out text, token by token (`megaponder eval`)."""

import numpy as np
from numpy.typing import NDArray

from megatron_ext.batch import TokenBatch
from megatron_ext.micro_batch import ModelOutput
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from pipeline.build import heldout_batches
from pipeline.data.unigram import unigram_entropy
from pipeline.evaluate import Evaluation, evaluate
from pipeline.inference import OpenedCheckpoint
from pipeline.metrics.ponder_scalars import jacobi_residuals
from pipeline.report.inputs import EvaluationResult, loss_quartiles


class TokenRecorder:
    """Keeps the loss and the steps of every labelled token that passes."""

    def __init__(self) -> None:
        """Start empty."""
        self._losses: list[NDArray[np.float64]] = []
        self._steps: list[NDArray[np.int64]] = []

    def __call__(self, batch: TokenBatch, output: ModelOutput) -> None:
        """Take in one micro-batch; tokens without halting are passed over."""
        if output.steps is None:
            return
        has_label = (batch.labels != IGNORED_LABEL).transpose(0, 1)
        self._losses.append(output.token_losses.double().cpu()[has_label].numpy())
        self._steps.append(output.steps.cpu()[has_label].numpy())

    @property
    def losses(self) -> NDArray[np.float64]:
        """[tokens], nats."""
        return np.concatenate([np.empty(0), *self._losses])

    @property
    def steps(self) -> NDArray[np.int64]:
        """[tokens]."""
        return np.concatenate([np.empty(0, dtype=np.int64), *self._steps])


def evaluate_checkpoint(checkpoint: OpenedCheckpoint, *, max_global_batches: int) -> EvaluationResult:
    """Evaluate on the held-out split of the run's own data.

    Args:
        checkpoint: the model, on ranks that are all tensor parallel.
        max_global_batches: how much of the split.
    """
    config, ponder = checkpoint.config, checkpoint.config.ponder
    sweeps = ponder.num_jacobi_iterations
    batches = heldout_batches(
        config, checkpoint.heldout, checkpoint.groups, max_global_batches=max_global_batches
    )
    recorder = TokenRecorder()
    evaluation = evaluate(
        checkpoint.module,
        batches,
        num_jacobi_iterations=sweeps,
        groups=checkpoint.groups,
        observe=recorder,
    )
    assert evaluation is not None, "nothing cuts this evaluation short"
    sums = evaluation.sums
    return EvaluationResult(
        checkpoint=str(checkpoint.folder),
        iteration=checkpoint.state.iteration,
        split=checkpoint.heldout.split,
        method=ponder.method,
        num_latent_thoughts=ponder.num_latent_thoughts,
        num_jacobi_iterations=sweeps,
        pruning_threshold=ponder.pruning_threshold if "steps_count" in sums else None,
        num_tokens=int(sums["labelled_tokens"][0]),
        loss=evaluation.loss,
        unigram_entropy=unigram_entropy(checkpoint.heldout),
        steps_count=tuple(int(count) for count in sums.get("steps_count", ())),
        nll_by_steps=_nll_by_steps(evaluation),
        loss_quartiles=loss_quartiles(recorder.losses, recorder.steps),
        residuals=tuple(jacobi_residuals(sums)) if "residual_change" in sums else (),
        tokens_per_second=evaluation.tokens_per_second,
    )


def _nll_by_steps(evaluation: Evaluation) -> tuple[float | None, ...]:
    sums = evaluation.sums
    if "nll_by_steps" not in sums:
        return ()
    pairs = zip(sums["nll_by_steps"], sums["labelled_by_steps"], strict=True)
    return tuple(nll / count if count else None for nll, count in pairs)
