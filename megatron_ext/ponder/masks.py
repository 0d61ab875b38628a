"""Visibility of rows: documents and padding, over the rows of a pass.

A document is a run of equal ids. Padding has the id -1 and forms a run of its own, so that no real token sees
it and it sees no real token.
"""

import torch
from torch import Tensor

from megatron_ext.ponder.attention import Segments
from megatron_ext.ponder.slots import repeat_per_slot

PADDING_DOCUMENT = -1


def document_segments(document_ids: Tensor) -> Segments | None:
    """Find the runs of equal document ids.

    Args:
        document_ids: [B, S] int64, on the CPU.
    Returns:
        The runs of every sequence, or None where every sequence is one single run.
    """
    segments = []
    for row in document_ids:
        starts = [0, *(torch.nonzero(row[1:] != row[:-1]).flatten() + 1).tolist()]
        segments.append(tuple(zip(starts, [*starts[1:], row.shape[0]], strict=True)))
    if all(len(runs) == 1 for runs in segments):
        return None
    return tuple(segments)


def scale_segments(segments: Segments | None, num_slots: int) -> Segments | None:
    """Turn runs of tokens into runs of rows, for a pass with `num_slots` slots per token."""
    if segments is None or num_slots == 1:
        return segments
    return tuple(tuple((start * num_slots, stop * num_slots) for start, stop in runs) for runs in segments)


def visible_rows(document_ids: Tensor, num_slots: int) -> Tensor:
    """Return the same rule as a dense mask, quadratic in the rows: for references and tests.

    Args:
        document_ids: [B, S].
        num_slots: n.
    Returns:
        [B, S * n, S * n] bool, True where the query row (dim 1) sees the key row (dim 2).
    """
    documents = repeat_per_slot(document_ids, num_slots)
    same_document = documents.unsqueeze(2) == documents.unsqueeze(1)
    return same_document & torch.ones_like(same_document[0]).tril()
