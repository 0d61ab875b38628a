"""Rotary angles of the rows of a pass. All slots of a token share its position (definitions 2.1)."""

import torch
from torch import Tensor

from megatron_ext.ponder.slots import repeat_per_slot


def rotary_angles(
    position_ids: Tensor, *, num_slots: int, rotary_size: int, base: float, dtype: torch.dtype
) -> Tensor:
    """Return angles in half-split pairing, in the layout that Megatron's rotary functions expect.

    Args:
        position_ids: [B, S] int64.
        num_slots: n, slots per token in the pass.
        rotary_size: rotated channels of a head, even.
        base: rotary base.
        dtype: float32 or float64.
    Returns:
        [S * n, B, 1, rotary_size].
    """
    device = position_ids.device
    exponents = torch.arange(0, rotary_size, 2, dtype=dtype, device=device) / rotary_size
    frequencies = 1.0 / (base**exponents)
    # [B, S] -> [B, S * n] -> [S * n, B]
    positions = repeat_per_slot(position_ids, num_slots).transpose(0, 1).to(dtype)
    angles = positions.unsqueeze(-1) * frequencies
    return torch.cat([angles, angles], dim=-1).unsqueeze(2)
