"""Penalties on the steps taken (definitions 2.5, 2.8). Real tokens only, pooled over the micro-batch.

S = tokens, B = micro-batch, K = extra steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.ponder.config import Penalty
from megatron_ext.ponder.halting import log_tail_mass, step_entropy


def expected_steps(mass: Tensor, real: Tensor) -> Tensor:
    """Return the mean over real tokens of the expected number of steps, as a share of K.

    Args:
        mass: w, [S, K + 1, B], K >= 1.
        real: [S, B] bool, False at padding.
    Returns:
        scalar in [0, 1].
    """
    per_token = mass[:, 1:].sum(dim=1) / (mass.shape[1] - 1)
    return (per_token * real).sum() / real.sum().clamp_min(1)


def bottom_k(values: Tensor, fraction: float) -> Tensor:
    """Return the mean of the ``max(1, floor(fraction * N))`` smallest of N values; 0 when the fraction is 0.

    Args:
        values: any shape, the values of real tokens.
        fraction: q in [0, 1].
    """
    if fraction == 0 or values.numel() == 0:
        return values.new_zeros(())
    count = max(1, int(fraction * values.numel()))
    return torch.topk(values.flatten(), count, largest=False, sorted=False).values.mean()


def entropy_gap(steps: Tensor, real: Tensor, floor: float) -> Tensor:
    """Return the mean over real tokens of what the entropy of s lacks to the floor.

    Args:
        steps: s, [S, K + 1, B].
        real: [S, B] bool, False at padding.
        floor: in nats.
    Returns:
        scalar, at least 0.
    """
    lacking = (floor - step_entropy(steps)).clamp_min(0)
    return (lacking * real).sum() / real.sum().clamp_min(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScores:
    """How well the labels of a micro-batch are predicted, without gradient.

    Attributes:
        nll: loss in nats, 0 where there is no label, [S, B].
        is_first: whether the label is the most likely piece of the vocabulary, [S, B] bool.
    """

    nll: Tensor
    is_first: Tensor


def accuracies(scores: Sequence[LabelScores], has_label: Tensor) -> Tensor:
    """Return a_0..a_K: the mean over labelled tokens of the probability of labels that are predicted, else 0.

    Args:
        scores: of the readouts from at most 0..K steps.
        has_label: [S, B] bool.
    Returns:
        [K + 1], in [0, 1].
    """
    counted = [torch.where(one.is_first, torch.exp(-one.nll), 0.0) for one in scores]
    return _means(torch.stack(counted), has_label)


def penalty_levels(kind: Penalty, scores: Sequence[LabelScores], has_label: Tensor) -> Tensor:
    """Return b_1..b_K of an adaptive penalty: how dispensable step k and those after it are.

    Args:
        kind: which penalty.
        scores, has_label: see :func:`accuracies`.
    Returns:
        [K], in [0, 1].
    """
    if kind is Penalty.ACCURACY_BOTTOM:
        return accuracies(scores[:-1], has_label)
    nll = torch.stack([one.nll for one in scores])
    if kind is Penalty.DELTA_LOSS:
        return _means(torch.sigmoid(50.0 * (nll[1:] - nll[:-1]).clamp_max(0.0)), has_label)
    assert kind is Penalty.CE_LOSS, f"{kind} is not adaptive"
    return 1.0 - _means(torch.sigmoid(10.0 * (nll[1:] - 0.5)), has_label)


def penalised_shares(levels: Tensor) -> Tensor:
    """Return r_1..r_K, the shares of tokens that steps are to lose: what each level adds to the one before.

    Args:
        levels: b_1..b_K, [K].
    Returns:
        [K], in [0, 1].
    """
    return torch.cat([levels[:1], levels.diff().clamp_min(0.0)])


def smallest_masses(mass: Tensor, real: Tensor, shares: Tensor) -> Tensor:
    """Return the sum over steps k of the mean of the ``max(1, floor(r_k N))`` smallest w_k of N real tokens.

    The host does not wait for the shares.

    Args:
        mass: w, [S, K + 1, B].
        real: [S, B] bool.
        shares: r_1..r_K, [K].
    """
    # [S, K, B] -> [K, S * B], padding last
    masses = mass[:, 1:].masked_fill(~real.unsqueeze(1), float("inf")).transpose(0, 1).flatten(1)
    rising = masses.sort(dim=1).values
    counts = (shares * real.sum()).floor().clamp_min(1.0).unsqueeze(1)
    rank = torch.arange(rising.shape[1], device=rising.device)
    is_chosen = (rank < counts) & torch.isfinite(rising)
    return (torch.where(is_chosen, rising, 0.0) / counts).sum()


def _means(values: Tensor, has_label: Tensor) -> Tensor:
    """Return means over labelled tokens: [n, S, B] -> [n]."""
    return torch.where(has_label, values, 0.0).sum(dim=(1, 2)) / has_label.sum().clamp_min(1)


def of_real_tokens(values: Tensor, real: Tensor, rows: Tensor | None = None) -> Tensor:
    """Return the values of the N real tokens: [S, B, ...] -> [N, ...].

    Args:
        values: of all tokens.
        real: [S, B] bool.
        rows: [N] int64, where the real tokens are among all S B; None finds them, for which the host waits.
    """
    if rows is None:
        rows = real.flatten().nonzero().squeeze(1)
    return values.flatten(0, 1).index_select(0, rows)


def halting_penalty(
    mass: Tensor,
    real: Tensor,
    kind: Penalty,
    bottom_k_fraction: float,
    *,
    real_rows: Tensor | None = None,
) -> Tensor:
    """Return the penalty of a micro-batch where it follows from the tail masses alone.

    Args:
        mass: w of the final pass, [S, K + 1, B]; without steps to halt (K = 0) every penalty is 0.
        real: [S, B] bool.
        kind: which penalty, not an adaptive one unless K = 0.
        bottom_k_fraction: q, for bottom_k.
        real_rows: see :func:`of_real_tokens`.
    """
    if mass.shape[1] == 1:
        return mass.new_zeros(())
    assert not kind.is_adaptive, f"{kind} needs scores of labels"
    if kind is Penalty.EXPECTED_STEPS:
        return expected_steps(mass, real)
    # [S, K, B] -> [S, B, K] -> [real tokens, K]
    log_mass = log_tail_mass(mass[:, 1:]).transpose(1, 2)
    return bottom_k(of_real_tokens(log_mass, real, real_rows), bottom_k_fraction)


def confident_continuation(
    continue_logits: Tensor,
    correctness: Tensor,
    steps: Tensor,
    *,
    labelled: Tensor,
    real: Tensor,
    exponent: float,
) -> Tensor:
    """Return the mean over real tokens of what continuing costs: the more, the better they predict already.

    Each step that a labelled token runs adds ``p^beta g``: p the probability that the step gives to the
    label, g that of continuing. No other step adds anything.

    Args:
        continue_logits: router logits after steps 0..K-1, [S, B, K].
        correctness: p, [S, B, K], without gradient.
        steps: steps after the first that run, [S, B].
        labelled, real: [S, B] bool; padding is not real.
        exponent: beta.
    Returns:
        scalar in [0, K].
    """
    step = torch.arange(continue_logits.shape[-1], device=steps.device)
    counts = (step <= steps.unsqueeze(-1)) & (labelled & real).unsqueeze(-1)
    cost = correctness.detach().pow(exponent) * torch.sigmoid(continue_logits)
    return torch.where(counts, cost, 0.0).sum() / real.sum().clamp_min(1)


def ramp(step: int, start: int, end: int) -> float:
    """Return a linear ramp from 0 at `start` to 1 at `end`; 1 throughout where both are the same step."""
    if step >= end:
        return 1.0
    return max(0.0, (step - start) / (end - start))
