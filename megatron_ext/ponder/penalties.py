"""Penalties on the steps taken (definitions 2.5). Real tokens only, pooled over the micro-batch."""

import torch
from torch import Tensor

from megatron_ext.ponder.config import Penalty
from megatron_ext.ponder.halting import log_tail_mass, step_entropy


def expected_steps(mass: Tensor, real: Tensor) -> Tensor:
    """Return the mean over real tokens of the expected number of steps, as a share of K.

    Args:
        mass: w, [S, K + 1, B].
        real: [S, B] bool, False at padding.
    Returns:
        scalar in [0, 1].
    """
    num_latent_thoughts = mass.shape[1] - 1
    if num_latent_thoughts == 0:
        return mass.new_zeros(())
    per_token = mass[:, 1:].sum(dim=1) / num_latent_thoughts
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


def halting_penalty(mass: Tensor, real: Tensor, kind: Penalty, bottom_k_fraction: float) -> Tensor:
    """Return the penalty of a micro-batch.

    Args:
        mass: w of the final pass, [S, K + 1, B].
        real: [S, B] bool.
        kind: which penalty.
        bottom_k_fraction: q, for bottom_k.
    """
    if kind is Penalty.EXPECTED_STEPS:
        return expected_steps(mass, real)
    # [S, K, B] -> [S, B, K] -> [real tokens, K]
    return bottom_k(log_tail_mass(mass[:, 1:]).transpose(1, 2)[real], bottom_k_fraction)


def confident_continuation(
    continue_logits: Tensor,
    correctness: Tensor,
    steps: Tensor,
    *,
    labelled: Tensor,
    real: Tensor,
    exponent: float,
) -> Tensor:
    """Return the mean over real tokens of what going on costs: the more, the better they predict already.

    Each step that a labelled token runs adds ``p^beta g``: p the probability that the step gives to the
    label, g that of going on. No other step adds anything.

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
