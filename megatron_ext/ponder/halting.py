"""Halting: how tokens decide on their steps, and what of them is read.

Tail mass, masks and readout of PonderLM-3 (definitions 2.5), gates of AdaPonderLM (3.2), reach and exit
masses of Adaptive Latent CoT (3.3).

S = tokens, B = micro-batch, K = extra steps, H = hidden size. Step quantities of PonderLM-3 are laid out
[S, K + 1, B], so that a slot of a token and its number have the same index as in
:mod:`megatron_ext.ponder.slots`.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

# log w is clamped here in training: w below it multiplies a softmax term by what float32 rounds away.
SMALLEST_TAIL_MASS = 1e-9

# The same for the keys that a hard mask keeps in training (definitions 2.8).
SMALLEST_KEPT_MASS = 1e-12

# Used as log 0 in a hard mask. Finite, so that splitting it into two bfloat16 columns gives no NaN;
# exp of it is exactly 0 in every floating type used here.
PRUNED_LOG_MASS = -1e9
HIDDEN_LOG_MASS = -1e4


def folded_router_logits(router_logits: Tensor, num_steps: int) -> Tensor:
    """Give the share of all steps beyond a limit to the limit itself.

    Args:
        router_logits: [..., K + 1].
        num_steps: the limit, at most K.
    Returns:
        [..., num_steps + 1].
    """
    if router_logits.shape[-1] == num_steps + 1:
        return router_logits
    beyond = router_logits[..., num_steps:].logsumexp(dim=-1, keepdim=True)
    return torch.cat([router_logits[..., :num_steps], beyond], dim=-1)


def step_distribution(router_logits: Tensor) -> Tensor:
    """Return s: the probabilities that a token stops at steps 0..K.

    Args:
        router_logits: [S, B, K + 1].
    Returns:
        [S, K + 1, B], in at least float32.
    """
    wide = router_logits.to(torch.promote_types(router_logits.dtype, torch.float32))
    # [S, B, K + 1] -> [S, K + 1, B]
    return torch.softmax(wide, dim=-1).transpose(1, 2)


def tail_mass(steps: Tensor) -> Tensor:
    """Return w: the probability that a token takes at least k steps, summed from k = K downwards.

    The sum runs from the end because 1 - cumsum loses all digits of a small tail. ``w_0`` is 1 exactly and
    carries no gradient.

    Args:
        steps: s, [S, K + 1, B].
    Returns:
        [S, K + 1, B], non-increasing along dim 1.
    """
    return torch.cat([torch.ones_like(steps[:, :1]), _sums_from_the_end(steps[:, 1:])], dim=1)


def _sums_from_the_end(steps: Tensor) -> Tensor:
    """[S, K, B] -> sums over k..K, the same shape."""
    if torch.are_deterministic_algorithms_enabled() and steps.device.type != "cpu":
        return sums_one_by_one(steps)
    return steps.flip(1).cumsum(1).flip(1)


def sums_one_by_one(steps: Tensor) -> Tensor:
    """Return sums over k..K of [S, K, B], for devices whose cumsum torch does not promise to repeat."""
    if steps.shape[1] == 0:
        return steps
    return torch.stack([*accumulate(reversed(steps.unbind(1)))][::-1], dim=1)


def log_tail_mass(mass: Tensor) -> Tensor:
    """Return the soft mask: log w, clamped below at 1e-9 without gradient there. Shape is kept."""
    return torch.log(mass.clamp_min(SMALLEST_TAIL_MASS))


def hard_log_tail_mass(mass: Tensor, threshold: float) -> Tensor:
    """Return the hard mask: log w on the slots that are kept, log 0 on the pruned ones. Shape is kept."""
    return torch.where(mass >= threshold, log_tail_mass(mass), PRUNED_LOG_MASS)


def hidden_log_tail_mass(mass: Tensor, threshold: float) -> Tensor:
    """Return the mask of training that hides keys: log w above the threshold, else -1e4 without gradient.

    Shape is kept.
    """
    kept = torch.log(mass.clamp_min(SMALLEST_KEPT_MASS))
    return torch.where(mass > threshold, kept, HIDDEN_LOG_MASS)


def log_key_mass(mass: Tensor, threshold: float, *, hides_keys: bool) -> Tensor:
    """Return what training adds to the logits of keys, the soft or the hard mask, in the shape of `mass`.

    Args:
        mass: w.
        threshold: tau.
        hides_keys: whether keys of slots below tau are hidden.
    """
    return hidden_log_tail_mass(mass, threshold) if hides_keys else log_tail_mass(mass)


def is_kept(mass: Tensor, threshold: float, *, hides_keys: bool = False) -> Tensor:
    """Return which slots are not pruned, in the shape of `mass`.

    Args:
        mass: w.
        threshold: tau.
        hides_keys: whether training hides keys, and then those of slots at the threshold too.
    """
    return mass > threshold if hides_keys else mass >= threshold


def steps_taken(mass: Tensor, threshold: float, *, hides_keys: bool = False) -> Tensor:
    """Return K_hat: the last step that is not pruned.

    Args:
        mass: w, [S, K + 1, B].
        threshold, hides_keys: see :func:`is_kept`.
    Returns:
        [S, B] int64, in 0..K.
    """
    # w is non-increasing, so counting the kept steps gives the last one.
    return is_kept(mass[:, 1:], threshold, hides_keys=hides_keys).sum(dim=1)


def mix_steps(hidden: Tensor, steps: Tensor) -> Tensor:
    """Return the readout: the expectation of the hidden state over steps.

    Args:
        hidden: [S, K + 1, B, H].
        steps: s, [S, K + 1, B]; set to 0 where pruned.
    Returns:
        [S, B, H] in the dtype of `hidden`; the sum runs in the dtype of `steps`.
    """
    mixed: Tensor = (hidden * steps.unsqueeze(-1)).sum(dim=1).to(hidden.dtype)
    return mixed


def last_step_weights(mass: Tensor, threshold: float, *, hides_keys: bool = False) -> Tensor:
    """Return 1 for the last step of each token that is not pruned, 0 for all others.

    Args:
        mass: w, [S, K + 1, B].
        threshold: tau; 0 takes step K, unless keys are hidden.
        hides_keys: see :func:`is_kept`.
    Returns:
        [S, K + 1, B] in the dtype of `mass`, without gradient.
    """
    last = nn.functional.one_hot(steps_taken(mass, threshold, hides_keys=hides_keys), mass.shape[1])
    # [S, B, K + 1] -> [S, K + 1, B]
    return last.transpose(1, 2).to(mass.dtype)


def one_step_more(weights: Tensor) -> Tensor:
    """Return the weights of steps if every token took one step more than it does; step K keeps its own.

    Args:
        weights: of the steps in what is read, [S, K + 1, B].
    """
    if weights.shape[1] == 1:
        return weights
    moved = torch.cat([torch.zeros_like(weights[:, :1]), weights[:, :-2]], dim=1)
    return torch.cat([moved, weights[:, -2:].sum(dim=1, keepdim=True)], dim=1)


def step_entropy(steps: Tensor) -> Tensor:
    """Return the entropy of s in nats: [S, K + 1, B] -> [S, B]."""
    entropy: Tensor = -torch.special.xlogy(steps, steps).sum(dim=1)
    return entropy


def closing_logit(threshold: float) -> float:
    """Return the gate logit below which a token halts: the logit of tau, in [0, 1)."""
    return math.log(threshold / (1 - threshold)) if threshold > 0 else -math.inf


def still_active(active: Tensor, gate_logits: Tensor, threshold: float) -> Tensor:
    """Return m of the next iteration: a token continues while its gate value reaches the threshold.

    A token that has halted stays halted.

    Args:
        active: m of this iteration, [S, B] bool.
        gate_logits: g of this iteration, [S, B].
        threshold: tau.
    Returns:
        [S, B] bool.
    """
    return active & (torch.sigmoid(gate_logits) >= threshold)


def active_iterations(gate_logits: Tensor, threshold: float) -> Tensor:
    """Return the extra iterations that each token takes.

    Args:
        gate_logits: g of all iterations, [S, B, K].
        threshold: tau.
    Returns:
        [S, B] int64, in 0..K.
    """
    stays = torch.sigmoid(gate_logits) >= threshold
    return stays.long().cumprod(dim=-1).sum(dim=-1)


def reaches(reach: Tensor, continue_logits: Tensor) -> Tensor:
    """Return R of the next step: the probability that a token comes so far.

    Args:
        reach: R of this step, any shape.
        continue_logits: router logits of this step, in the same shape.
    """
    return reach * torch.sigmoid(continue_logits)


def exit_masses(continue_logits: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Return the share of each step in what is read, and the steps that run.

    A token runs step k + 1 while its reach is at least the threshold; its last step takes all that remains,
    so that the shares of a token sum to 1. Where a token stops has no gradient, the shares have one.

    Args:
        continue_logits: router logits after steps 0..K-1, [S, B, K]; those after a token's last step count
            for nothing.
        threshold: tau.
    Returns:
        e, [S, K + 1, B], and steps after the first, [S, B] int64.
    """
    reach = [torch.ones_like(continue_logits[..., 0])]
    for logits in continue_logits.unbind(dim=-1):
        reach.append(reaches(reach[-1], logits))
    num_steps = continue_logits.shape[-1]
    # Reach does not rise, so counting the steps that are reached gives the last one.
    steps = torch.stack([one >= threshold for one in reach[1:]]).sum(dim=0)
    masses = []
    for step in range(num_steps):
        leaves = reach[step] * torch.sigmoid(-continue_logits[..., step])
        masses.append(torch.where(steps > step, leaves, torch.where(steps == step, reach[step], 0.0)))
    masses.append(torch.where(steps == num_steps, reach[-1], 0.0))
    return torch.stack(masses, dim=1), steps


def mix_exits(hidden: Sequence[Tensor], masses: Tensor) -> Tensor:
    """Return the readout: the mean of a token's hidden states under its exit masses.

    Args:
        hidden: of steps 0..K, each [S, B, H]; of no matter where a step did not run, but finite.
        masses: e, [S, K + 1, B].
    Returns:
        [S, B, H] in the dtype of `hidden`; the sum runs in the dtype of `masses`.
    """
    first, *others = (one * mass.unsqueeze(-1) for one, mass in zip(hidden, masses.unbind(1), strict=True))
    for other in others:
        first = first + other
    return first.to(hidden[0].dtype)


def in_float32(layers: nn.Sequential | nn.Linear, hidden: Tensor) -> Tensor:
    """Run a small network in at least float32, whatever the dtype of its weights: halting needs it."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    hidden = hidden.to(dtype)
    for layer in [layers] if isinstance(layers, nn.Linear) else layers:
        if isinstance(layer, nn.Linear):
            hidden = nn.functional.linear(hidden, layer.weight.to(dtype), layer.bias.to(dtype))
        else:
            hidden = layer(hidden)
    return hidden
