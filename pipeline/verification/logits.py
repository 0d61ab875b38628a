"""Logits of the same tokens by the training forward and by cached decoding.

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
from megatron_ext.ponder.step_limits import UNLIMITED, StepLimits
from pipeline.verification.texts import Piece


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardLogits:
    """What one training forward gave.

    Attributes:
        logits: [T, V], on every rank.
        statistics: sums of the model over the batch.
    """

    logits: Tensor
    statistics: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedLogits:
    """What decoding token by token gave.

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
    """Run the forward that training runs, with soft masks, without gradients.

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
        batch.to(device()), num_jacobi_iterations=num_jacobi_iterations, limits=limits, observe=keep
    )
    logits = model.axis.gather_last_dim(seen["logits"])[..., : model.config.vocab_size]
    # [S, B, V] -> [B, S, V] -> [T, V]
    return ForwardLogits(
        logits=logits.transpose(0, 1)[batch.is_real.to(logits.device)], statistics=output.statistics
    )


def decoded_logits(
    model: PonderModel, pieces: Sequence[Piece], limits: StepLimits = UNLIMITED
) -> DecodedLogits:
    """Let every document be decoded with its own tokens given (teacher forced), all documents side by side.

    Args:
        model: of a single pipeline stage, in evaluation mode.
        pieces: at least one.
        limits: on the steps that tokens take.
    """
    # Longest first: those that go on stand together, and attend in one call.
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
        going_on = [piece for piece in longest_first if len(piece.tokens) > position]
        decoded = decoder.consume(range(len(going_on)), [piece.tokens[position] for piece in going_on])
        if logits is None:
            logits = decoded.logits.new_empty(num_tokens, decoded.logits.shape[1])
        places = torch.tensor([piece.first + position for piece in going_on], device=device())
        logits[places] = decoded.logits
        steps[places] = decoded.steps
    assert logits is not None, "a piece has at least one token"
    return DecodedLogits(logits=logits, steps=steps)
