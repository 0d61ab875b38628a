"""Iteration-wise halting of AdaPonderLM: gate values and the monotone mask (definitions 3.2).

S = tokens, B = micro-batch, K = extra iterations.
"""

import torch
from torch import Tensor


def still_active(active: Tensor, gate_logits: Tensor, threshold: float) -> Tensor:
    """M of the next iteration: a token goes on while its gate value reaches the threshold, and never again.

    Args:
        active: m of this iteration, [S, B] bool.
        gate_logits: g of this iteration, [S, B].
        threshold: tau.
    Returns:
        [S, B] bool.
    """
    return active & (torch.sigmoid(gate_logits) >= threshold)


def active_iterations(gate_logits: Tensor, threshold: float) -> Tensor:
    """Extra iterations that every token takes.

    Args:
        gate_logits: g of all iterations, [S, B, K].
        threshold: tau.
    Returns:
        [S, B] int64, in 0..K.
    """
    stays = torch.sigmoid(gate_logits) >= threshold
    return stays.long().cumprod(dim=-1).sum(dim=-1)
