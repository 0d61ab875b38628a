"""Logits of the same tokens by the training forward and by cached decoding, and how far they are apart.

T = real tokens of a batch, row by row; V = vocabulary without padding rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.decoding import BatchDecoder
from megatron_ext.device import device
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits
from pipeline.verification.texts import Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardLogits:
    """The result of one training forward.

    Attributes:
        logits: [T, V], on every rank.
        statistics: sums of the model over the batch.
    """

    logits: Tensor
    statistics: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedLogits:
    """The result of decoding token by token.

    Attributes:
        logits: [T, V], on every rank.
        steps: extra steps that ran, [T].
    """

    logits: Tensor
    steps: Tensor


@torch.no_grad()
def forward_logits(
    model: PonderModel,
    batch: TokenBatch,
    *,
    num_jacobi_iterations: int,
    limits: StepLimits = UNLIMITED,
) -> ForwardLogits:
    """Run the forward that training runs, with its masks but undamped, without gradients.

    Args:
        model: of a single pipeline stage, in evaluation mode.
        batch: rows on the host.
        num_jacobi_iterations: J.
        limits: on the steps that tokens take.
    """
    seen: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        if name == "logits":
            # The loss works on them in place.
            seen[name] = value.clone()

    output = model(
        batch.to(device()),
        num_jacobi_iterations=num_jacobi_iterations,
        damped=False,
        limits=limits,
        observe=keep,
    )
    logits = model.axis.gather_last_dim(seen["logits"])[..., : model.config.vocab_size]
    # [S, B, V] -> [B, S, V] -> [T, V]
    return ForwardLogits(
        logits=logits.transpose(0, 1)[batch.is_real.to(logits.device)], statistics=output.statistics
    )


def decoded_logits(
    model: PonderModel, pieces: Sequence[Piece], limits: StepLimits = UNLIMITED
) -> DecodedLogits:
    """Decode all documents together, each with its own tokens given (teacher forcing).

    Args:
        model: of a single pipeline stage, in evaluation mode.
        pieces: at least one.
        limits: on the steps that tokens take.
    """
    # Longest first: those that have further tokens are neighbours, and attend in one call.
    longest_first = sorted(pieces, key=lambda piece: -len(piece.tokens))
    decoder = BatchDecoder(
        model,
        num_sequences=len(longest_first),
        max_tokens=len(longest_first[0].tokens),
        limits=limits,
    )
    num_tokens = sum(len(piece.tokens) for piece in pieces)
    logits: Tensor | None = None
    steps = torch.zeros(num_tokens, dtype=torch.int64, device=device())
    for position in range(len(longest_first[0].tokens)):
        longer = [piece for piece in longest_first if len(piece.tokens) > position]
        decoded = decoder.consume(range(len(longer)), [piece.tokens[position] for piece in longer])
        if logits is None:
            logits = decoded.logits.new_empty(num_tokens, decoded.logits.shape[1])
        places = torch.tensor([piece.first + position for piece in longer], device=device())
        logits[places] = decoded.logits
        steps[places] = decoded.steps
    assert logits is not None, "a piece has at least one token"
    return DecodedLogits(logits=logits, steps=steps)


@dataclass(slots=True)
class Agreement:
    """Differences between the logits of the same tokens.

    Attributes:
        max_error: largest difference of any logit of any token; NaN where a logit is NaN.
        error_sum: of all differences.
        num_logits: how many there are.
        num_same_top: tokens whose most likely next token is the same.
        num_tokens: all tokens.
    """

    max_error: float = 0.0
    error_sum: float = 0.0
    num_logits: int = 0
    num_same_top: int = 0
    num_tokens: int = 0

    def add(self, expected: Tensor, found: Tensor) -> None:
        """Add the logits of further tokens, [T, V] each."""
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
        """Share of tokens with the same most likely next token."""
        return self.num_same_top / self.num_tokens


@dataclass(slots=True)
class LossSum:
    """Cross-entropy over the tokens that have a label."""

    nll: float = 0.0
    num_labels: int = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add further tokens: logits [T, V], labels [T] with -100 where there is none."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = torch.nn.functional.cross_entropy(wide, labels, ignore_index=IGNORED_LABEL, reduction="sum")
        self.nll += float(losses)
        self.num_labels += int((labels != IGNORED_LABEL).sum())

    @property
    def mean(self) -> float:
        """Nats per labelled token; NaN without any."""
        return self.nll / self.num_labels if self.num_labels else float("nan")
