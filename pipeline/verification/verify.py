"""Compare the training forward with hard-pruned cached decoding on the same text, over tau and J.

The forward has soft masks and a finite number of Jacobi sweeps; decoding prunes for good and needs no sweeps.
The error of the sweeps falls with J, the error of pruning falls with tau; with J large and tau small both
must be the same function (definitions 2.5, 2.8, 3.2). Where training damps the router's decisions, the
forwards here do not: the fixed point is the same, and damped ones would approach it by a tenth a sweep.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.ponder.config import Method
from megatron_ext.ponder.step_limits import StepLimits
from pipeline.metrics.ponder_scalars import contraction, jacobi_residuals
from pipeline.verification.logits import (
    Agreement,
    DecodedLogits,
    ForwardLogits,
    LossSum,
    decoded_logits,
    forward_logits,
)
from pipeline.verification.result import JUDGED_THRESHOLD, Comparison, Decoding, Verification
from pipeline.verification.texts import pieces_of

DEFAULT_THRESHOLDS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 0.5)
DEFAULT_SWEEPS = (0, 1, 2, 4, 8, 16)
# Residuals below this are rounding of float32, which no sweep makes smaller.
ROUNDING_RESIDUAL = 1e-6


def thresholds_for(method: Method, chosen: Sequence[float] = ()) -> tuple[float | None, ...]:
    """Return the thresholds to try, the judged one among them; (None,) for a method that does not halt."""
    if not method.halts:
        return (None,)
    return tuple(sorted({*(chosen or DEFAULT_THRESHOLDS), JUDGED_THRESHOLD}))


def sweeps_for(method: Method, run_jacobi_iterations: int, chosen: Sequence[int] = ()) -> tuple[int, ...]:
    """Return the numbers of sweeps to try, the run's own among them unless some are chosen; else (0,)."""
    if not method.has_sweeps:
        return (0,)
    return tuple(sorted(set(chosen) or {*DEFAULT_SWEEPS, run_jacobi_iterations}))


def verify_model(
    model: PonderModel,
    batches: Iterable[TokenBatch],
    *,
    thresholds: Sequence[float | None],
    sweeps: Sequence[int],
    advance: Callable[[], None] = lambda: None,
) -> Verification:
    """Compare every forward with every decoding; all tensor-parallel ranks call it together.

    Args:
        model: of a single pipeline stage, in evaluation mode.
        batches: rows whose documents do not see each other and count positions from 0; at least one.
        thresholds: tau of the decodings, from :func:`thresholds_for`.
        sweeps: J of the forwards, from :func:`sweeps_for`.
        advance: called after every batch and threshold.
    """
    sums = _Sums(model, thresholds, sweeps)
    for batch in batches:
        for threshold in thresholds:
            sums.add(batch, threshold)
            advance()
        sums.forget_forwards()
    return sums.result()


class _Sums:
    """Sums over batches."""

    def __init__(self, model: PonderModel, thresholds: Sequence[float | None], sweeps: Sequence[int]) -> None:
        self._model = model
        self._thresholds, self._sweeps = thresholds, sweeps
        self._agreements = {(j, tau): Agreement() for j in sweeps for tau in thresholds}
        self._forward_losses = {(j, tau): LossSum() for j in sweeps for tau in thresholds}
        self._decoded_losses = {tau: LossSum() for tau in thresholds}
        num_slots = model.ponder.config.num_slots
        self._steps = {tau: torch.zeros(num_slots, dtype=torch.int64) for tau in thresholds}
        self._residual_sums: dict[str, Tensor] = {}
        self._forwards: dict[int, ForwardLogits] = {}

    def add(self, batch: TokenBatch, threshold: float | None) -> None:
        """Decode a batch at one threshold and compare all forwards with it."""
        limits = StepLimits(threshold=threshold)
        decoded = decoded_logits(self._model, pieces_of(batch), limits)
        self._run_forwards(batch, limits)
        labels = batch.labels[batch.is_real].to(decoded.logits.device)
        self._add_decoding(threshold, decoded, labels)
        for num_sweeps, forward in self._forwards.items():
            self._agreements[num_sweeps, threshold].add(forward.logits, decoded.logits)
            self._forward_losses[num_sweeps, threshold].add(forward.logits, labels)

    def forget_forwards(self) -> None:
        """Drop the logits of a batch."""
        self._forwards.clear()

    def result(self) -> Verification:
        judged = self._agreements[self._sweeps[0], self._thresholds[0]]
        residuals = self._residuals()
        return Verification(
            num_tokens=judged.num_tokens,
            decodings=tuple(self._decoding(threshold) for threshold in self._thresholds),
            comparisons=tuple(
                self._comparison(num_sweeps, threshold)
                for num_sweeps in self._sweeps
                for threshold in self._thresholds
            ),
            residuals=tuple(residuals),
            contraction=contraction([one for one in residuals if one > ROUNDING_RESIDUAL]),
        )

    def _residuals(self) -> list[float]:
        if not self._residual_sums:
            return []
        return jacobi_residuals({name: sums.tolist() for name, sums in self._residual_sums.items()})

    def _run_forwards(self, batch: TokenBatch, limits: StepLimits) -> None:
        """Run the forwards of a batch, again for each threshold if they depend on it."""
        if self._forwards and not self._model.ponder.prunes_in_training:
            return
        is_first = not self._forwards
        self._forwards = {
            num_sweeps: forward_logits(self._model, batch, num_jacobi_iterations=num_sweeps, limits=limits)
            for num_sweeps in self._sweeps
        }
        if not is_first:
            return
        most = max(self._sweeps)
        statistics = self._forwards[most].statistics
        for name in ("residual_change", "residual_norm"):
            if name in statistics:
                found = statistics[name][:most]
                self._residual_sums[name] = self._residual_sums.get(name, torch.zeros_like(found)) + found

    def _add_decoding(self, threshold: float | None, decoded: DecodedLogits, labels: Tensor) -> None:
        self._decoded_losses[threshold].add(decoded.logits, labels)
        counts = self._steps[threshold]
        counts += decoded.steps.cpu().bincount(minlength=len(counts))

    def _decoding(self, threshold: float | None) -> Decoding:
        counts = self._steps[threshold].tolist()
        return Decoding(
            pruning_threshold=threshold,
            mean_steps=sum(steps * count for steps, count in enumerate(counts)) / sum(counts),
            steps_count=tuple(counts),
            loss=self._decoded_losses[threshold].mean,
        )

    def _comparison(self, num_sweeps: int, threshold: float | None) -> Comparison:
        agreement = self._agreements[num_sweeps, threshold]
        return Comparison(
            num_jacobi_iterations=num_sweeps,
            pruning_threshold=threshold,
            max_error=agreement.max_error,
            mean_error=agreement.mean_error,
            top1_agreement=agreement.top1_agreement,
            forward_loss=self._forward_losses[num_sweeps, threshold].mean,
        )
