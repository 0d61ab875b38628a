"""One micro-batch: what it is made of, what its passes share on this rank, and what comes out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megatron_ext.device import pinned
from megatron_ext.methods.base import PassContext, PonderMethod
from megatron_ext.ponder.attention import Segments
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """A micro-batch as the data side makes it: B rows of S tokens.

    Attributes:
        tokens: [B, S] int64.
        labels: [B, S] int64; the next token, or -100 where none is to be predicted.
        position_ids: [B, S] int64 rotary positions.
        document_ids: [B, S] int64 on the CPU; runs of equal ids see each other, -1 is padding.
    """

    tokens: Tensor
    labels: Tensor
    position_ids: Tensor
    document_ids: Tensor

    def to(self, device: torch.device) -> "TokenBatch":
        """Move all but the document ids, which decide the shapes of attention calls on the host."""
        return TokenBatch(
            tokens=self.tokens.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            position_ids=self.position_ids.to(device, non_blocking=True),
            document_ids=self.document_ids,
        )

    def pinned(self) -> "TokenBatch":
        """Return the batch in memory from which :meth:`to` copies without making the host wait."""
        return TokenBatch(
            tokens=pinned(self.tokens),
            labels=pinned(self.labels),
            position_ids=pinned(self.position_ids),
            document_ids=self.document_ids,
        )

    def share(self, own_tokens: Callable[[Tensor], Tensor]) -> "TokenBatch":
        """Return the batch of some tokens of each row, which a function chooses: [B, S] -> [B, S / C]."""
        return TokenBatch(
            tokens=own_tokens(self.tokens),
            labels=own_tokens(self.labels),
            position_ids=own_tokens(self.position_ids),
            document_ids=own_tokens(self.document_ids),
        )

    @property
    def is_real(self) -> Tensor:
        """[B, S] bool on the CPU, False at padding."""
        return self.document_ids != PADDING_DOCUMENT


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSettings:
    """Settings of one forward.

    Attributes:
        num_jacobi_iterations: J.
        prune: mask pruned slots out (hard mask) instead of weighing them.
        damped: damp the router's decisions where the method says so; without, the sweeps reach the same fixed
            point sooner.
        bottom_k_fraction: q of the bottom-k penalty; None takes the configured one.
        limits: on the steps that tokens take.
        pondering_share, holds_decisions, measures_steps: see :class:`PassContext`.
        gradient_passes: so many last passes have gradients; None: all.
        sweep_tolerance, skips_pruned_rows: see :class:`PassContext`.
    """

    num_jacobi_iterations: int
    prune: bool = False
    damped: bool = True
    bottom_k_fraction: float | None = None
    limits: StepLimits = UNLIMITED
    pondering_share: float = 1.0
    holds_decisions: bool = False
    measures_steps: bool = False
    gradient_passes: int | None = None
    sweep_tolerance: float | None = None
    skips_pruned_rows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """A batch while its passes run.

    Attributes:
        batch: on the device; the tokens of this context-parallel rank.
        segments: documents of the whole rows, as runs of tokens.
        method: the model's, under the limits of this forward.
        context: the state that the method reads and writes.
    """

    batch: TokenBatch
    segments: Segments | None
    method: PonderMethod
    context: PassContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOutput:
    """Result of one forward of a micro-batch, over whole rows also where ranks share their tokens.

    Attributes:
        token_losses: [S, B] cross-entropy in nats, 0 where there is no label; gradients reach the tokens of
            this rank.
        penalty: scalar that is weighted and added to the mean loss, or None.
        steps: [S, B] int64 steps taken by every token, or None where all take K.
        step_scores: [S, B, K] what the threshold is compared with to take each step, non-increasing, or None
            where all take K.
        statistics: additive sums over the micro-batch, each [size], without gradient.
        step_losses: [S, B] weighted mean of the cross-entropies of reading each step alone, or None.
        regularizer: scalar, mean over real tokens, that is added to the mean loss, or None.
        num_sweeps: refinement sweeps that were run.
    """

    token_losses: Tensor
    penalty: Tensor | None
    steps: Tensor | None
    step_scores: Tensor | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)
    step_losses: Tensor | None = None
    regularizer: Tensor | None = None
    num_sweeps: int = 0
