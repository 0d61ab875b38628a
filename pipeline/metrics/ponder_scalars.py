"""Compute the values of curves from the sums of an interval."""

import math
from collections.abc import Mapping, Sequence

from pipeline.cost.flops import FlopsAccount
from pipeline.metrics import names

Sums = Mapping[str, Sequence[float]]


def mean_loss(sums: Sums) -> float:
    """Return the cross-entropy in nats per labelled token; NaN if no token had a label."""
    return _ratio(sums["nll"][0], sums["labelled_tokens"][0], default=math.nan)


def ponder_scalars(
    sums: Sums,
    *,
    num_jacobi_iterations: float,
    penalty_weight: float,
    flops: FlopsAccount,
    training_flops: float | None = None,
) -> dict[str, float]:
    """Compute every ``ponder/`` curve of the run's method.

    Args:
        sums: what :class:`pipeline.metrics.statistics.StatisticsAccumulator` returned; statistics that the
            method does not have are absent.
        num_jacobi_iterations: mean number of sweeps in the interval.
        penalty_weight: the current weight of the ponder penalty in the loss.
        flops: cost account of the model.
        training_flops: per token of a training step; None: that of all K steps.
    Returns:
        Value by tag. Tags without a value are absent, such as the loss of a step that no token took.
    """
    if training_flops is None:
        training_flops = flops.training_per_token(num_jacobi_iterations)
    scalars = {names.FLOPS_PER_TOKEN_TRAIN: training_flops}
    share = share_of_thoughts_run(sums)
    if share is not None:
        scalars[names.THOUGHT_ROWS] = share
    if "residual_change" in sums:
        scalars[names.JACOBI_ITERATIONS] = num_jacobi_iterations
        scalars |= _residual_scalars(jacobi_residuals(sums))
    mean_steps, shares = float(flops.num_latent_thoughts), None
    if "steps_count" in sums:
        scalars |= _halting_scalars(sums)
        scalars[names.PENALTY_WEIGHT] = penalty_weight
        mean_steps = scalars.get(names.MEAN_STEPS, mean_steps)
        shares = fractions(sums["steps_count"])
        scalars[names.FLOPS_SAVED] = flops.saved_fraction(mean_steps, shares=shares)
    scalars[names.FLOPS_PER_TOKEN_INFER] = flops.inference_per_token(mean_steps, shares=shares)
    return scalars


def share_of_thoughts_run(sums: Sums) -> float | None:
    """Return the share of the rows of thoughts that ran; None where pruned ones are not left out."""
    total = sums["thought_rows"][0] if "thought_rows" in sums else 0.0
    return sums["thought_rows_run"][0] / total if total > 0 else None


def jacobi_residuals(sums: Sums) -> list[float]:
    """Return ``rms(new - old) / rms(old)`` of each sweep that ran, first sweep first."""
    pairs = zip(sums["residual_change"], sums["residual_norm"], strict=True)
    return [math.sqrt(change / norm) for change, norm in pairs if norm > 0]


def contraction(residuals: Sequence[float]) -> float | None:
    """Return the factor by which a sweep shrinks the residual: the geometric mean of successive ratios.

    Residuals of exactly zero, of sweeps that have converged, are ignored. None with fewer than two others.
    """
    positive = [residual for residual in residuals if residual > 0]
    if len(positive) < 2:
        return None
    # The product of successive ratios telescopes.
    return math.pow(positive[-1] / positive[0], 1 / (len(positive) - 1))


def fractions(counts: Sequence[float]) -> list[float]:
    """Divide counts by their total; all zero if nothing was counted."""
    total = sum(counts)
    return [_ratio(count, total, default=0.0) for count in counts]


def active_fractions(steps_count: Sequence[float]) -> list[float]:
    """Return the share of tokens that take at least k steps, for k = 0..K, from the tokens with exactly k."""
    halted = fractions(steps_count)
    return [sum(halted[step:]) for step in range(len(halted))]


def mean_steps_of(steps_count: Sequence[float]) -> float:
    """Return the mean number of steps; 0 if nothing was counted."""
    return sum(step * share for step, share in enumerate(fractions(steps_count)))


def tail_masses(scalars: Mapping[str, float]) -> list[float]:
    """Return the mean tail mass of steps 0, 1, ... from the curves of an interval; empty without a router."""
    masses: list[float] = []
    while (tag := names.per_step(names.TAIL_MASS, len(masses))) in scalars:
        masses.append(scalars[tag])
    return masses


def _residual_scalars(residuals: Sequence[float]) -> dict[str, float]:
    scalars = {
        names.per_sweep(names.JACOBI_RESIDUAL, sweep): value for sweep, value in enumerate(residuals, start=1)
    }
    factor = contraction(residuals)
    return scalars if factor is None else scalars | {names.CONTRACTION: factor}


def _halting_scalars(sums: Sums) -> dict[str, float]:
    real_tokens = sums["real_tokens"][0]
    if real_tokens == 0:
        return {}
    scalars = {
        names.MEAN_STEPS: mean_steps_of(sums["steps_count"]),
        names.PENALTY: sums["penalty"][0] / real_tokens,
    }
    scalars |= _step_curves(names.HALT_FRACTION, fractions(sums["steps_count"]))
    scalars |= _step_curves(names.ACTIVE_FRACTION, active_fractions(sums["steps_count"]))
    scalars |= _router_scalars(sums, real_tokens) if "router_entropy" in sums else {}
    scalars |= _gate_scalars(sums, real_tokens) if "gate_mean" in sums else {}
    scalars |= _continue_scalars(sums) if "continue_probability" in sums else {}
    losses = zip(sums["nll_by_steps"], sums["labelled_by_steps"], strict=True)
    for step, (nll, labelled) in enumerate(losses):
        if labelled > 0:
            scalars[names.per_step(names.NLL_BY_STEPS, step)] = nll / labelled
    return scalars


def _router_scalars(sums: Sums, real_tokens: float) -> dict[str, float]:
    scalars = {names.ROUTER_ENTROPY: sums["router_entropy"][0] / real_tokens}
    scalars |= _step_curves(names.TAIL_MASS, [mass / real_tokens for mass in sums["tail_mass"]])
    pruned = [1 - active for active in active_fractions(sums["steps_count"])]
    scalars |= _step_curves(names.PRUNED_FRACTION, pruned[1:], first=1)
    return scalars | _penalty_scalars(sums, real_tokens) | _measured_scalars(sums)


def _penalty_scalars(sums: Sums, real_tokens: float) -> dict[str, float]:
    """Return the curves of an adaptive penalty, where there is one."""
    if "penalised_share" not in sums:
        return {}
    shares = [share / real_tokens for share in sums["penalised_share"]]
    scalars = _step_curves(names.PENALISED_SHARE, shares, first=1)
    labelled = sums["labelled_tokens"][0]
    if labelled > 0:
        scalars |= _step_curves(names.ACCURACY, [total / labelled for total in sums["accuracy"]])
    return scalars


def _measured_scalars(sums: Sums) -> dict[str, float]:
    """Return the curves of single steps, where they were measured."""
    measured = sums["measured_tokens"][0]
    if measured == 0:
        return {}
    curves = _step_curves(names.STEP_NLL, [nll / measured for nll in sums["step_nll"]])
    return curves | {names.ONE_MORE_NLL: sums["one_more_nll"][0] / measured}


def _gate_scalars(sums: Sums, real_tokens: float) -> dict[str, float]:
    return {
        names.per_iteration(names.GATE, iteration): total / real_tokens
        for iteration, total in enumerate(sums["gate_mean"])
    }


def _continue_scalars(sums: Sums) -> dict[str, float]:
    """Return the mean over the tokens that ran a step, of those steps that some token ran."""
    counts = sums["steps_count"]
    return {
        names.per_step(names.CONTINUE_PROBABILITY, step): total / sum(counts[step:])
        for step, total in enumerate(sums["continue_probability"])
        if sum(counts[step:]) > 0
    }


def _step_curves(family: str, values: Sequence[float], *, first: int = 0) -> dict[str, float]:
    return {names.per_step(family, step): value for step, value in enumerate(values, start=first)}


def _ratio(numerator: float, denominator: float, *, default: float) -> float:
    return numerator / denominator if denominator else default
