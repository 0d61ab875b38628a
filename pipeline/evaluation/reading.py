"""Read held-out rows with a decoder, token by token results in the order of the batch.

T = real tokens of a batch, row by row; K = steps; V = vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_ext.decoding import BatchDecoder, token_nll
from megatron_ext.device import device
from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.model.model import PonderModel
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from megatron_ext.ponder.decode.sweeps import Sweeps
from megatron_ext.ponder.step_limits import StepLimits
from pipeline.verification.texts import Piece, pieces_of


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTokens:
    """What a decoder made of the tokens of some rows.

    Attributes:
        losses: of the labelled tokens, in nats, [labelled].
        steps: extra steps of all tokens, [T].
        scores: what their steps are taken by, [T, K]; None without a signal.
    """

    losses: Tensor
    steps: Tensor
    scores: Tensor | None


def read_rows(
    model: PonderModel,
    batch: TokenBatch,
    *,
    sweeps: Sweeps,
    limits: StepLimits,
    documents_are_apart: bool,
) -> ReadTokens:
    """Read all rows as prompts are read; all tensor-parallel ranks call it together.

    Args:
        model: in evaluation mode, on one pipeline stage.
        batch: on the host.
        sweeps: of the Jacobi iteration.
        limits: on the steps.
        documents_are_apart: documents do not see each other and count positions from 0; otherwise a row is
            read as one text.
    """
    pieces = pieces_of(batch) if documents_are_apart else _rows_of(batch)
    total = sum(len(piece.tokens) for piece in pieces)
    labels = batch.labels[batch.is_real]
    losses = torch.zeros(total, dtype=torch.float64, device=device())
    steps = torch.zeros(total, dtype=torch.int64, device=device())
    scores: Tensor | None = None
    for group in _groups(pieces, max_tokens=batch.tokens.numel()):
        places = torch.cat([torch.arange(len(one.tokens)) + one.first for one in group]).to(device())
        part = _read_group(model, group, labels, sweeps=sweeps, limits=limits)
        losses[places], steps[places] = part.losses, part.steps
        if part.scores is not None:
            scores = part.scores.new_zeros(total, part.scores.shape[1]) if scores is None else scores
            scores[places] = part.scores
    has_label = (labels != IGNORED_LABEL).to(device())
    return ReadTokens(losses=losses[has_label], steps=steps, scores=scores)


def _rows_of(batch: TokenBatch) -> list[Piece]:
    pieces, first = [], 0
    for row, is_real in zip(batch.tokens, batch.is_real, strict=True):
        tokens = row[is_real.to(row.device)].tolist()
        if tokens:
            pieces.append(Piece(first=first, tokens=tokens))
        first += len(tokens)
    return pieces


def _groups(pieces: Sequence[Piece], *, max_tokens: int) -> Iterator[list[Piece]]:
    """Gather pieces of similar lengths, which together need no more room than the rows of the batch."""
    group: list[Piece] = []
    for piece in sorted(pieces, key=lambda one: -len(one.tokens)):
        # The first one is the longest.
        if group and (len(group) + 1) * len(group[0].tokens) > max_tokens:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _read_group(
    model: PonderModel, pieces: Sequence[Piece], labels: Tensor, *, sweeps: Sweeps, limits: StepLimits
) -> ReadTokens:
    decoder = BatchDecoder(
        model, num_sequences=len(pieces), max_tokens=max(len(one.tokens) for one in pieces), limits=limits
    )
    seen: dict[str, Tensor] = {}
    decoder.observe = lambda name, value: seen.update({name: value}) if name.startswith("prompt_") else None
    read = decoder.score_prompts(range(len(pieces)), [one.tokens for one in pieces], sweeps=sweeps)
    losses = []
    for piece, prompt in zip(pieces, read, strict=True):
        last = int(labels[piece.first + len(piece.tokens) - 1])
        # Where the last token has no label, its loss is not read.
        of_last = token_nll(prompt.logits.unsqueeze(0), [max(last, 0)])
        losses.append(torch.cat([prompt.nll, of_last]))
    halting = decoder.halting
    return ReadTokens(
        losses=torch.cat(losses).double(),
        steps=torch.cat([prompt.steps for prompt in read]),
        scores=None if halting is None else halting.scores(seen["prompt_slots/hidden"]),
    )
