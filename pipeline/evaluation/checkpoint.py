"""Measure a checkpoint on held-out text, token by token (`megaponder eval`)."""

from typing import Any

import numpy as np
import torch.distributed
from numpy.typing import NDArray

from data_prep.tokenizers.tokenizer import Tokenizer
from megatron_ext.model.micro_batch import ModelOutput, TokenBatch
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits
from pipeline.data.prompts import load_tokenizer
from pipeline.data.unigram import unigram_entropy
from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.evaluation.points import evaluate_under
from pipeline.evaluation.results import EvaluationResult, loss_quartiles
from pipeline.evaluation.sources import SourceRecorder
from pipeline.metrics.ponder_scalars import jacobi_residuals
from pipeline.shared.progress import open_bar, tracked
from pipeline.step.build import heldout_batches
from pipeline.step.evaluate import Evaluation


class TokenRecorder:
    """Records loss and steps of every labelled token."""

    def __init__(self) -> None:
        """Start empty."""
        self._losses: list[NDArray[np.float64]] = []
        self._steps: list[NDArray[np.int64]] = []

    def __call__(self, batch: TokenBatch, output: ModelOutput) -> None:
        """Add one micro-batch; nothing is recorded for a method that does not halt."""
        if output.steps is None:
            return
        has_label = (batch.labels != IGNORED_LABEL).transpose(0, 1)
        self._losses.append(output.token_losses.double().cpu()[has_label].numpy())
        self._steps.append(output.steps.cpu()[has_label].numpy())

    def read(self, groups: ParallelGroups) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return loss in nats and steps of all tokens, [tokens] each, of all replicas."""
        losses = np.concatenate([np.empty(0), *self._losses])
        steps = np.concatenate([np.empty(0, dtype=np.int64), *self._steps])
        parts: list[Any] = [None] * groups.dp_size
        torch.distributed.all_gather_object(parts, (losses, steps), group=groups.dp)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def evaluate_checkpoint(
    checkpoint: OpenedCheckpoint,
    *,
    max_global_batches: int,
    limits: StepLimits = UNLIMITED,
    shows_progress: bool = False,
) -> EvaluationResult:
    """Evaluate on the held-out split of the run's own data.

    Args:
        checkpoint: the model, on one pipeline stage.
        max_global_batches: global batches of the split, at most all.
        limits: on the steps, without a signal; with a threshold slots are pruned for good.
        shows_progress: on the terminal of this rank, if it has one.
    """
    config, ponder = checkpoint.config, checkpoint.config.ponder
    sweeps = ponder.num_jacobi_iterations
    batches = heldout_batches(
        config, checkpoint.heldout, checkpoint.groups, max_global_batches=max_global_batches
    )
    tokens, sources = TokenRecorder(), SourceRecorder(batches, _tokenizer(checkpoint))

    def observe(batch: TokenBatch, output: ModelOutput) -> None:
        tokens(batch, output)
        sources(batch, output)

    with open_bar("evaluating", total=len(batches), speaks=shows_progress) as bar:
        evaluation = evaluate_under(
            limits,
            checkpoint.module,
            tracked(batches, bar),
            num_jacobi_iterations=sweeps,
            groups=checkpoint.groups,
            observe=observe,
        )
    assert evaluation is not None, "nothing cuts this evaluation short"
    sums = evaluation.sums
    limited = checkpoint.module.ponder.under(limits).config
    return EvaluationResult(
        checkpoint=str(checkpoint.folder),
        iteration=checkpoint.state.iteration,
        split=checkpoint.heldout.split,
        method=ponder.method,
        num_latent_thoughts=limited.num_latent_thoughts,
        num_jacobi_iterations=sweeps,
        pruning_threshold=limited.pruning_threshold if "steps_count" in sums else None,
        num_tokens=int(sums["labelled_tokens"][0]),
        loss=evaluation.loss,
        unigram_entropy=unigram_entropy(checkpoint.heldout),
        steps_count=tuple(int(count) for count in sums.get("steps_count", ())),
        nll_by_steps=_nll_by_steps(evaluation),
        loss_quartiles=loss_quartiles(*tokens.read(checkpoint.groups)),
        residuals=tuple(jacobi_residuals(sums)) if "residual_change" in sums else (),
        tokens_per_second=evaluation.tokens_per_second,
        sources=sources.read(checkpoint.groups),
        prunes=limits.threshold is not None,
        step_limit=limits.num_steps,
    )


def _tokenizer(checkpoint: OpenedCheckpoint) -> Tokenizer | None:
    """Return the tokenizer of the run's data, if the data name one."""
    data = checkpoint.config.data
    if data.heldout_format == "webdataset":
        return load_tokenizer(data.heldout_path or data.training_paths[0])
    return None


def _nll_by_steps(evaluation: Evaluation) -> tuple[float | None, ...]:
    sums = evaluation.sums
    if "nll_by_steps" not in sums:
        return ()
    pairs = zip(sums["nll_by_steps"], sums["labelled_by_steps"], strict=True)
    return tuple(nll / count if count else None for nll, count in pairs)
