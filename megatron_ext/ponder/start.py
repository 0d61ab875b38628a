"""The blended start of a model that continues a trained one (definitions 2.9).

The trained model reads h^0. Over the first iterations of its continuation the share of the method's own
readout rises from 0 to 1, and the keys of its thoughts, almost invisible at first, come to their full weight.
"""

import torch
from torch import Tensor

# Added to log w of every extra slot at the very start: its key then has e^-6 of a token's weight.
FIRST_LOG_WEIGHT = -6.0


def pondering_share(iteration: int, blended_iterations: int) -> float:
    """Return a: rises linearly from 0 at iteration 0 to 1 after the blended start; 1 where there is none.

    Args:
        iteration: finished iterations since tokens may take extra steps; negative before that.
        blended_iterations: length of the blended start.
    """
    if blended_iterations == 0:
        return 1.0
    return min(1.0, max(0, iteration) / blended_iterations)


def added_log_weight(share: float, num_slots: int, rows: Tensor) -> Tensor:
    """Return what is added to log w of the slots of a token: 0 for slot 0, -6 (1 - a) for all others.

    Args:
        share: a.
        num_slots: n.
        rows: of the pass, for the device and the dtype.
    Returns:
        [n] in at least float32.
    """
    dtype = torch.promote_types(rows.dtype, torch.float32)
    added = torch.full((num_slots,), FIRST_LOG_WEIGHT * (1 - share), dtype=dtype, device=rows.device)
    added[0] = 0.0
    return added


def blend(first: Tensor, own: Tensor, share: float) -> Tensor:
    """Return ``(1 - a) first + a own``, computed in at least float32, in the dtype of `own`.

    Args:
        first: h^0, which the trained model reads.
        own: what the method reads, in the same shape.
        share: a.
    """
    dtype = torch.promote_types(own.dtype, torch.float32)
    return ((1 - share) * first.to(dtype) + share * own.to(dtype)).to(own.dtype)
