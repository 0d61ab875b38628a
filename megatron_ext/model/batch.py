"""One micro-batch of token rows, as the data side makes it and the model takes it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.ponder.masks import PADDING_DOCUMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """B rows of S tokens.

    Attributes:
        tokens: [B, S] int64.
        labels: [B, S] int64; the token that follows, or -100 where none is to be predicted.
        position_ids: [B, S] int64 rotary positions.
        document_ids: [B, S] int64 on the CPU, runs of equal ids see each other; -1 is padding.
    """

    tokens: Tensor
    labels: Tensor
    position_ids: Tensor
    document_ids: Tensor

    def to(self, device: torch.device) -> "TokenBatch":
        """Move what is computed with; document ids stay on the host, where they shape the attention calls."""
        return TokenBatch(
            tokens=self.tokens.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            document_ids=self.document_ids,
        )

    @property
    def is_real(self) -> Tensor:
        """[B, S] bool on the CPU, False at padding."""
        return self.document_ids != PADDING_DOCUMENT
