"""What was measured of the convergence of a run; also the content of ``--json FILE``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ConfigDict, TypeAdapter, with_config

from pipeline.shared.files import write_atomically

STRICT = ConfigDict(extra="forbid")
# Residuals below this are rounding of float32, which no sweep makes smaller.
ROUNDING_RESIDUAL = 1e-6


@with_config(STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Contraction:
    """A geometric law fitted to residuals: ``start * factor ** sweep``.

    Attributes:
        factor: by which a sweep shrinks the residual.
        start: what the law says for sweep 0.
    """

    factor: float
    start: float

    def sweeps_for(self, tolerance: float) -> int | None:
        """Return the first sweep whose residual the law puts within a tolerance; None where it never is."""
        if self.start <= tolerance:
            return 0
        if not 0 < self.factor < 1:
            return None
        return math.ceil(math.log(tolerance / self.start) / math.log(self.factor))


def fitted_contraction(residuals: Sequence[float]) -> Contraction | None:
    """Fit a geometric law by least squares of the logarithms; None with fewer than two residuals.

    Args:
        residuals: of sweeps 1, 2, ..; those that are only rounding, and all after the first of them, do not
            count.
    """
    clear = next((n for n, one in enumerate(residuals) if not one > ROUNDING_RESIDUAL), len(residuals))
    if clear < 2:
        return None
    slope, intercept = np.polyfit(np.arange(1, clear + 1), np.log(residuals[:clear]), 1)
    return Contraction(factor=math.exp(slope), start=math.exp(intercept))


@with_config(STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class NeededSweeps:
    """The sweeps until the residual is within a tolerance; None: it does not get there.

    Attributes:
        is_extrapolated: by the fitted law, beyond the sweeps that were measured.
    """

    tolerance: float
    num_sweeps: int | None
    is_extrapolated: bool


def needed_sweeps(residuals: Sequence[float], law: Contraction | None, tolerance: float) -> NeededSweeps:
    """Return how many sweeps a tolerance needs: as measured, or by the law.

    Args:
        residuals: of sweeps 1, 2, ..
        law: fitted to them.
        tolerance: of the residual.
    """
    for sweep, residual in enumerate(residuals, start=1):
        if residual <= tolerance:
            return NeededSweeps(tolerance=tolerance, num_sweeps=sweep, is_extrapolated=False)
    number = None if law is None else law.sweeps_for(tolerance)
    # The law may put into the measured range what was not found there.
    number = None if number is None else max(number, len(residuals) + 1)
    return NeededSweeps(tolerance=tolerance, num_sweeps=number, is_extrapolated=True)


@with_config(STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardAt:
    """A forward with J sweeps, against the exact solution.

    Attributes:
        num_jacobi_iterations: J.
        loss: nats per labelled token.
        max_error: largest difference of a logit.
        num_guaranteed: first tokens of a text that J sweeps must make exact: 1 + floor(J / K).
        num_exact: first tokens that are exact to rounding in every text.
    """

    num_jacobi_iterations: int
    loss: float
    max_error: float
    num_guaranteed: int
    num_exact: int


@with_config(STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A way to read prompts until they have settled.

    Attributes:
        damping, num_groups, by_slot: of the sweeps; 0, 1 and False are Jacobi.
        num_calls: trips through the layers, of all rows or of a group.
        rows_per_token: rows that went through the layers.
        milliseconds: for all prompts together, median of some rounds.
        max_error: largest difference of the logits after a prompt from reading it token by token.
    """

    damping: float
    num_groups: int
    by_slot: bool
    num_calls: int
    rows_per_token: float
    milliseconds: float
    max_error: float


@with_config(STRICT)
@dataclass(frozen=True, slots=True, kw_only=True)
class Convergence:
    """The convergence of a run on some held-out text.

    Attributes:
        checkpoint, iteration, method, num_latent_thoughts, precision: of which model.
        num_texts, num_tokens: of the text; documents do not see each other.
        tokens_by_position: tokens at each position of a document.
        residuals: of all thoughts after sweeps 1, 2, ..
        residuals_by_position: of the thoughts at each position, by sweep.
        contraction: fitted to the residuals; None where there is nothing to fit.
        contraction_by_position: the same for each position.
        needed: sweeps by tolerance.
        exact_loss: of the exact solution, nats per labelled token.
        forwards: by J.
        reading_tolerance: of the prompts below.
        readings: ways to read prompts, Jacobi first.
    """

    format: Literal["megaponder.convergence/1"] = "megaponder.convergence/1"
    checkpoint: str
    iteration: int
    method: str
    num_latent_thoughts: int
    precision: str
    num_texts: int
    num_tokens: int
    tokens_by_position: tuple[int, ...]
    residuals: tuple[float, ...]
    residuals_by_position: tuple[tuple[float, ...], ...]
    contraction: Contraction | None
    contraction_by_position: tuple[Contraction | None, ...]
    needed: tuple[NeededSweeps, ...]
    exact_loss: float
    forwards: tuple[ForwardAt, ...]
    reading_tolerance: float
    readings: tuple[Reading, ...]

    def residual_of(self, sweep: int, positions: Sequence[int]) -> float:
        """Return the root mean square residual at some positions, over tokens, after a sweep from 1 on.

        Thoughts of all tokens have about the same size, so it is close to the residual of these alone.
        """
        of_sweep = self.residuals_by_position[sweep - 1]
        total = sum(self.tokens_by_position[one] * of_sweep[one] ** 2 for one in positions)
        return math.sqrt(total / max(sum(self.tokens_by_position[one] for one in positions), 1))


def save_convergence(content: Convergence, path: Path) -> None:
    """Write the file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, f"{convergence_text(content)}\n")


def convergence_text(content: Convergence) -> str:
    """Return the content of the file."""
    return TypeAdapter(Convergence).dump_json(content, indent=1).decode()
