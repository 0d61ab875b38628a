"""Evaluate a checkpoint on its held-out text under limits, and find the threshold that meets a budget.

Tail masses, gates and signals of all tokens are recorded in an evaluation, and the threshold is searched for
among the recorded numbers. Pruning changes later tokens' numbers a little, so what is found is measured, and
where it misses the budget, searched for again in what that evaluation recorded.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch.distributed
from numpy.typing import NDArray

from megatron_ext.model.micro_batch import ModelOutput, TokenBatch
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.ponder.step_limits import StepLimits
from pipeline.cost.account import flops_account
from pipeline.cost.flops import FlopsAccount
from pipeline.data.batches import HeldoutBatches
from pipeline.evaluation.budget import Budget, RecordedScores, Spending, least_budget_error, spending
from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.evaluation.points import counted_steps, evaluate_under, loss_point
from pipeline.evaluation.reading import read_rows
from pipeline.metrics.ponder_scalars import mean_steps_of
from pipeline.metrics.records import LossPoint
from pipeline.shared.errors import DataError
from pipeline.step.build import heldout_batches

logger = logging.getLogger(__name__)

# Evaluations with a threshold that a search may take. Two are the rule.
MOST_SEARCHES = 4
# A search ends within the budget, and at most this share of the steps below what the records said.
SPENT_AS_EXPECTED = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitedResult:
    """An evaluation under limits.

    Attributes:
        limits: on the steps.
        loss: nats per labelled token.
        num_tokens: labelled tokens.
        steps_count: tokens that took 0..K steps; None where all take K.
        scores: what the steps of this replica's real tokens are taken by, [N, K]; None where all take K.
    """

    limits: StepLimits
    loss: float
    num_tokens: int
    steps_count: Sequence[float] | None
    scores: NDArray[np.floating] | None


@dataclass(frozen=True, slots=True)
class HeldoutText:
    """A checkpoint and the held-out text that it is evaluated on, as often as needed."""

    opened: OpenedCheckpoint
    max_global_batches: int
    _batches: list[HeldoutBatches] = field(default_factory=list)

    @property
    def batches(self) -> HeldoutBatches:
        """This rank's micro-batches."""
        if not self._batches:
            opened = self.opened
            self._batches.append(
                heldout_batches(
                    opened.config,
                    opened.heldout,
                    opened.groups,
                    max_global_batches=self.max_global_batches,
                )
            )
        return self._batches[0]

    @property
    def account(self) -> FlopsAccount:
        """The cost account of the model without limits."""
        return flops_account(self.opened.config, self.opened.module.config.vocab_size)

    def evaluate(self, limits: StepLimits) -> LimitedResult:
        """Evaluate under limits; all ranks call it together.

        A threshold of the model's own router or gates is applied by the training forward with a hard mask, a
        signal by a decoder that reads the text in as many sweeps.
        """
        return self._forward(limits) if limits.signal is None else self._read(limits)

    def point(self, result: LimitedResult, *, budget: Budget | None = None) -> LossPoint:
        """Return a result with its cost."""
        account = replace(self.account, signal=result.limits.signal)
        point = loss_point(result.limits, result.loss, result.steps_count, account)
        return replace(point, budget=None if budget is None else str(budget))

    def spending(self, result: LimitedResult) -> Spending:
        """Return what the tokens of a result cost."""
        assert result.steps_count is not None, "tokens of a budget take different numbers of steps"
        return spending(result.steps_count, self._account_under(result.limits), self.account)

    def meet(
        self, budget: Budget, limits: StepLimits, *, unpruned: LimitedResult | None = None
    ) -> LimitedResult:
        """Evaluate at the smallest threshold that meets a budget.

        Args:
            budget: for the mean over the text.
            limits: on the number of steps, and the signal.
            unpruned: :meth:`record` of these limits, if it is there already.
        Raises:
            DataError: not even no steps meet it.
        """
        full, account = self.account, self._account_under(limits)

        def fits(steps_count: Sequence[float]) -> bool:
            return spending(steps_count, account, full).fits(budget)

        recorded, tried = unpruned or self.record(limits), []
        for _ in range(MOST_SEARCHES):
            scores = self._all_scores(recorded)
            threshold = scores.smallest_threshold(fits)
            if threshold is None:
                raise least_budget_error(budget, self._least(scores, limits))
            recorded = self.evaluate(replace(limits, threshold=threshold))
            tried.append(recorded)
            expected, spent = mean_steps_of(scores.steps_count(threshold)), self.spending(recorded)
            if spent.fits(budget) and spent.mean_steps >= (1 - SPENT_AS_EXPECTED) * expected:
                break
        result = max(tried, key=lambda one: self._worth(one, budget))
        spent = self.spending(result)
        logger.info(
            "budget %s: threshold %.6g spends %.3f steps per token, %.1f%% of the operations of all steps",
            budget,
            result.limits.threshold,
            spent.mean_steps,
            100 * spent.flops_share,
        )
        return result

    def _worth(self, result: LimitedResult, budget: Budget) -> tuple[bool, float]:
        """Order results: those within the budget by rising steps, after those beyond it by falling steps."""
        spent = self.spending(result)
        fits = spent.fits(budget)
        return fits, spent.mean_steps if fits else -spent.mean_steps

    def record(self, limits: StepLimits) -> LimitedResult:
        """Evaluate without pruning, for the scores of all steps."""
        return self.evaluate(replace(limits, threshold=0.0))

    def _account_under(self, limits: StepLimits) -> FlopsAccount:
        account = replace(self.account, signal=limits.signal)
        return account if limits.num_steps is None else account.limited_to(limits.num_steps)

    def _least(self, scores: RecordedScores, limits: StepLimits) -> Spending:
        return spending(scores.steps_count(float("inf")), self._account_under(limits), self.account)

    def _all_scores(self, result: LimitedResult) -> RecordedScores:
        assert result.scores is not None, "a method without a threshold has no scores"
        groups = self.opened.groups
        parts: list[Any] = [None] * groups.dp_size
        torch.distributed.all_gather_object(parts, result.scores, group=groups.dp)
        return RecordedScores(np.concatenate(parts))

    def _forward(self, limits: StepLimits) -> LimitedResult:
        scores: list[NDArray[np.floating]] = []

        def observe(batch: TokenBatch, output: ModelOutput) -> None:
            if output.step_scores is not None:
                # [S, B, K] -> [B, S, K] -> [real tokens, K]
                of_rows = output.step_scores.transpose(0, 1).float().cpu()
                scores.append(of_rows[batch.is_real].numpy())

        module = self.opened.module
        found = evaluate_under(
            limits,
            module,
            self.batches,
            num_jacobi_iterations=self.opened.config.ponder.num_jacobi_iterations,
            groups=self.opened.groups,
            observe=observe,
        )
        assert found is not None, "nothing cuts this evaluation short"
        return LimitedResult(
            limits=limits,
            loss=found.loss,
            num_tokens=int(found.sums["labelled_tokens"][0]),
            steps_count=counted_steps(limits, module, found),
            scores=np.concatenate(scores) if scores else None,
        )

    def _read(self, limits: StepLimits) -> LimitedResult:
        opened = self.opened
        num_slots = opened.module.ponder.under(limits).config.num_slots
        sweeps = Sweeps(number=opened.config.ponder.num_jacobi_iterations)
        sums, counts, scores = np.zeros(2), np.zeros(num_slots, dtype=np.int64), []
        for batch in (batch for batches in self.batches for batch in batches):
            if not bool(batch.is_real.any()):
                continue
            read = read_rows(
                opened.module,
                batch,
                sweeps=sweeps,
                limits=limits,
                documents_are_apart=_documents_are_apart(opened),
            )
            sums += (float(read.losses.sum()), len(read.losses))
            counts += read.steps.bincount(minlength=num_slots).cpu().numpy()
            assert read.scores is not None, "a signal gives scores"
            scores.append(read.scores.float().cpu().numpy())
        parts: list[Any] = [None] * opened.groups.dp_size
        torch.distributed.all_gather_object(parts, (sums, counts), group=opened.groups.dp)
        loss, labelled = sum(part[0] for part in parts)
        return LimitedResult(
            limits=limits,
            loss=loss / labelled,
            num_tokens=int(labelled),
            steps_count=[float(count) for count in sum(part[1] for part in parts)],
            scores=np.concatenate([np.zeros((0, num_slots - 1), dtype=np.float32), *scores]),
        )


def _documents_are_apart(opened: OpenedCheckpoint) -> bool:
    """Whether the documents of a row are texts of their own.

    Raises:
        DataError: they are half so, as no decoder reads them.
    """
    data = opened.config.data
    if data.reset_positions != data.reset_attention:
        raise DataError(
            "data.reset_positions and data.reset_attention must be equal for a decoder to read the rows, but "
            f"are {data.reset_positions} and {data.reset_attention}; leave signals out"
        )
    return data.reset_attention
