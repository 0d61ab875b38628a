"""How far two ways to compute logits are apart, summed up over batches."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.parallel.vocabulary import IGNORED_LABEL


@dataclass(slots=True)
class Agreement:
    """Differences between the logits of the same tokens.

    Attributes:
        max_error: largest difference of any logit of any token; NaN where a logit is none.
        error_sum: of all differences.
        num_logits: how many there are.
        num_same_top: tokens whose likeliest next token is the same.
        num_tokens: all tokens.
    """

    max_error: float = 0.0
    error_sum: float = 0.0
    num_logits: int = 0
    num_same_top: int = 0
    num_tokens: int = 0

    def add(self, expected: Tensor, found: Tensor) -> None:
        """Take in logits of further tokens, [T, V] each."""
        wide = torch.promote_types(expected.dtype, torch.float32)
        errors = (expected.to(wide) - found.to(wide)).abs()
        # max() of Python would drop a NaN.
        self.max_error = float(torch.stack([errors.new_tensor(self.max_error), errors.max()]).max())
        self.error_sum += float(errors.sum(dtype=torch.float64))
        self.num_logits += errors.numel()
        self.num_same_top += int((expected.argmax(dim=1) == found.argmax(dim=1)).sum())
        self.num_tokens += len(errors)

    @property
    def mean_error(self) -> float:
        """Mean difference of a logit."""
        return self.error_sum / self.num_logits

    @property
    def top1_agreement(self) -> float:
        """Share of tokens with the same likeliest next token."""
        return self.num_same_top / self.num_tokens


@dataclass(slots=True)
class LossSum:
    """Cross-entropy over the tokens that have a label."""

    nll: float = 0.0
    num_labels: int = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take in further tokens: logits [T, V], labels [T] with -100 where there is none."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = torch.nn.functional.cross_entropy(wide, labels, ignore_index=IGNORED_LABEL, reduction="sum")
        self.nll += float(losses)
        self.num_labels += int((labels != IGNORED_LABEL).sum())

    @property
    def mean(self) -> float:
        """Nats per labelled token; NaN without any."""
        return self.nll / self.num_labels if self.num_labels else float("nan")
