"""Slots: the token and its latent thoughts, side by side in one sequence of rows.

S = tokens, n = slots per token in a pass, B = micro-batch, H = hidden size. Row ``t * n + k`` is slot k of
token t. Slot 0 carries the token's embedding, slot k >= 1 its k-th latent thought.
"""

import torch
from torch import Tensor


def split_slots(rows: Tensor, num_slots: int) -> Tensor:
    """View the rows of a pass token by token.

    Args:
        rows: [S * n, B, ...].
        num_slots: n, at least 1.
    Returns:
        [S, n, B, ...], a view.
    Raises:
        ValueError: if the rows are not a multiple of n.
    """
    if rows.shape[0] % num_slots != 0:
        raise ValueError(f"rows must be a multiple of {num_slots} slots, but are {rows.shape[0]}")
    # [S * n, B, ...] -> [S, n, B, ...]
    return rows.reshape(-1, num_slots, *rows.shape[1:])


def merge_slots(slots: Tensor) -> Tensor:
    """Undo :func:`split_slots`: [S, n, B, ...] -> [S * n, B, ...]."""
    return slots.flatten(0, 1)


def rows_of_pass(embeddings: Tensor, thoughts: Tensor | None) -> Tensor:
    """Put the token embeddings and the current latent thoughts into the row order of a pass.

    Args:
        embeddings: [S, B, H], slot 0 of every token.
        thoughts: [S, m, B, H], slots 1..m, or None for a pass without thoughts.
    Returns:
        [S * (m + 1), B, H].
    """
    if thoughts is None:
        return embeddings
    return merge_slots(torch.cat([embeddings.unsqueeze(1), thoughts], dim=1))


def take_slots(rows: Tensor, num_slots: int, slots: range) -> Tensor:
    """Return the rows of some slots of each token.

    Args:
        rows: [S * n, B, ...].
        num_slots: n, at least 1.
        slots: consecutive ones of 0..n - 1.
    Returns:
        [S * len(slots), B, ...], contiguous unless it is the argument itself.
    """
    if len(slots) == num_slots:
        return rows
    # [S * n, B, ...] -> [S, len(slots), B, ...]
    chosen = split_slots(rows, num_slots)[:, slots.start : slots.stop]
    return merge_slots(chosen.contiguous())


def slots_up_to(last_slot: Tensor, num_slots: int) -> Tensor:
    """Return which slots are at most the last one of their token: [S, B] int64 -> [S, n, B] bool."""
    slots = torch.arange(num_slots, device=last_slot.device)
    return slots[None, :, None] <= last_slot.unsqueeze(1)


def repeat_per_slot(per_token: Tensor, num_slots: int) -> Tensor:
    """Repeat the value of each token for its slots: [B, S] -> [B, S * n]."""
    return per_token.repeat_interleave(num_slots, dim=1)


def interleave_pauses(tokens: Tensor, pause_token: int, num_pauses: int) -> Tensor:
    """Insert copies of the pause token after each token: [B, S] -> [B, S * (num_pauses + 1)]."""
    pauses = torch.full((*tokens.shape, num_pauses), pause_token, dtype=tokens.dtype, device=tokens.device)
    # [B, S, 1 + pauses] -> [B, S * (1 + pauses)]
    return torch.cat([tokens.unsqueeze(-1), pauses], dim=-1).flatten(1)


def keys_of_slots(per_slot: Tensor) -> Tensor:
    """Reorder one number per slot to the order of the key columns: [S, n, B] -> [B, S * n]."""
    return merge_slots(per_slot).transpose(0, 1)
