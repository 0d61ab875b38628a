"""Measure the convergence of a checkpoint on held-out text of its run.

T = real tokens of a batch, V = vocabulary, K = latent thoughts, J = sweeps.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.device import device
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.ponder.step_limits import StepLimits
from pipeline.evaluation.convergence.readings import measured_readings
from pipeline.evaluation.convergence.result import (
    Convergence,
    ForwardAt,
    fitted_contraction,
    needed_sweeps,
)
from pipeline.evaluation.convergence.sums import ResidualSums
from pipeline.evaluation.opened import OpenedCheckpoint
from pipeline.verification.logits import LossSum, decoded_logits, forward_logits
from pipeline.verification.texts import heldout_rows, pieces_of

# The logits of a forward and of the exact solution are held for so many rows at once.
ROWS_AT_ONCE = 4
# Logits that differ by less are equal but for rounding, in float32.
EXACT_ERROR = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvergenceSettings:
    """What is measured.

    Attributes:
        num_rows, num_tokens: held-out rows, and tokens of each, at most.
        num_sweeps: J of the residuals.
        forwards: J of the losses, rising.
        tolerances: of the residual, to tell the sweeps that they need.
        reading_tolerance: at which ways to read prompts are compared.
    """

    num_rows: int
    num_tokens: int
    num_sweeps: int
    forwards: tuple[int, ...]
    tolerances: tuple[float, ...]
    reading_tolerance: float


def measure_convergence(
    checkpoint: OpenedCheckpoint,
    settings: ConvergenceSettings,
    *,
    advance: Callable[[], None] = lambda: None,
) -> Convergence:
    """Measure; all tensor-parallel ranks call it together.

    Args:
        checkpoint: the model, of a method with sweeps.
        settings: what to measure.
        advance: called after every forward and way to read, :func:`num_parts` times.
    """
    config, ponder = checkpoint.config, checkpoint.config.ponder
    batches = list(
        heldout_rows(
            checkpoint.heldout,
            num_rows=settings.num_rows,
            num_tokens=settings.num_tokens,
            seed=config.seed,
            rows_at_once=ROWS_AT_ONCE,
        )
    )
    positions = Counter(
        position for batch in batches for position in batch.position_ids[batch.is_real].tolist()
    )
    num_positions = max(positions) + 1
    forwards = _Forwards(checkpoint, settings, num_positions)
    for batch in batches:
        forwards.add(batch, advance)
    residuals, by_position = forwards.residuals.residuals(), forwards.residuals.residuals_by_position()
    law = fitted_contraction(residuals)
    prompts = [piece.tokens for batch in batches for piece in pieces_of(batch)]
    return Convergence(
        checkpoint=str(checkpoint.folder),
        iteration=checkpoint.state.iteration,
        method=ponder.method,
        num_latent_thoughts=ponder.num_latent_thoughts,
        precision=config.training.precision,
        num_texts=len(prompts),
        num_tokens=sum(positions.values()),
        tokens_by_position=tuple(positions[position] for position in range(num_positions)),
        residuals=tuple(residuals),
        residuals_by_position=tuple(tuple(of_sweep) for of_sweep in by_position),
        contraction=law,
        contraction_by_position=tuple(
            fitted_contraction([of_sweep[position] for of_sweep in by_position])
            for position in range(num_positions)
        ),
        needed=tuple(needed_sweeps(residuals, law, tolerance) for tolerance in settings.tolerances),
        exact_loss=forwards.exact_loss.mean,
        forwards=forwards.results(),
        reading_tolerance=settings.reading_tolerance,
        readings=measured_readings(
            checkpoint.module, prompts, tolerance=settings.reading_tolerance, advance=advance
        ),
    )


class _Forwards:
    """Forwards of several J against the exact solution, summed over batches."""

    def __init__(
        self, checkpoint: OpenedCheckpoint, settings: ConvergenceSettings, num_positions: int
    ) -> None:
        self._model, self._settings = checkpoint.module, settings
        ponder = checkpoint.module.ponder
        self.residuals = ResidualSums(ponder.plan(settings.num_sweeps), num_positions)
        self.exact_loss = LossSum()
        self._num_thoughts = ponder.config.num_latent_thoughts
        self._losses = {number: LossSum() for number in settings.forwards}
        self._errors = {number: torch.zeros(num_positions) for number in settings.forwards}
        # What training computes: no slot is pruned.
        self._soft = StepLimits(threshold=0.0 if checkpoint.config.ponder.method.halts else None)

    def add(self, batch: TokenBatch, advance: Callable[[], None]) -> None:
        """Add a batch, on the host."""
        exact = decoded_logits(self._model, pieces_of(batch), self._soft).logits
        labels = batch.labels[batch.is_real].to(exact.device)
        self.exact_loss.add(exact, labels)
        positions = batch.position_ids[batch.is_real]
        for number in self._settings.forwards:
            logits = forward_logits(self._model, batch, num_jacobi_iterations=number).logits
            self._losses[number].add(logits, labels)
            # [T, V] -> [T]
            error = (logits.float() - exact.float()).abs().amax(dim=1).cpu()
            self._errors[number].scatter_reduce_(0, positions, error, "amax")
            advance()
        self.residuals.begin(batch)
        self._observe_residuals(batch)
        advance()

    @torch.no_grad()
    def _observe_residuals(self, batch: TokenBatch) -> None:
        self._model(
            batch.to(device()), num_jacobi_iterations=self._settings.num_sweeps, observe=self.residuals
        )

    def results(self) -> tuple[ForwardAt, ...]:
        return tuple(
            ForwardAt(
                num_jacobi_iterations=number,
                loss=self._losses[number].mean,
                max_error=float(self._errors[number].max()),
                num_guaranteed=min(1 + number // max(self._num_thoughts, 1), len(self._errors[number])),
                num_exact=num_leading(self._errors[number], EXACT_ERROR),
            )
            for number in self._settings.forwards
        )


def num_leading(errors: Tensor, bound: float) -> int:
    """Return how many of the first errors, [P], are within a bound."""
    return int((errors <= bound).long().cumprod(dim=0).sum())


def num_parts(checkpoint: OpenedCheckpoint, settings: ConvergenceSettings, num_ways: int) -> int:
    """Return how often :func:`measure_convergence` will advance."""
    batches = -(-min(settings.num_rows, len(checkpoint.heldout)) // ROWS_AT_ONCE)
    return batches * (len(settings.forwards) + 1) + num_ways


def default_forwards(run_jacobi_iterations: int, num_sweeps: int) -> Sequence[int]:
    """Return the J of the losses: few, growing, the run's own, and as many as are measured."""
    usual = {number for number in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32) if number <= num_sweeps}
    return sorted(usual | {run_jacobi_iterations, num_sweeps})
