"""Held-out loss by the source of the text, per token and per byte of text."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from data_prep.tokenizers.tokenizer import Tokenizer
from megatron_ext.device import device
from megatron_ext.model.micro_batch import ModelOutput, TokenBatch
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.vocabulary import IGNORED_LABEL
from pipeline.data.batches import HeldoutBatches
from pipeline.data.joined_dataset import owners_of, source_names
from pipeline.evaluation.results import SourceLoss
from pipeline.metrics.statistics import StatisticsAccumulator


class SourceRecorder:
    """Sums loss, tokens and bytes of the labelled tokens by source.

    The bytes are those of the text that the labelled tokens encode, in UTF-8; the end of a document has a
    loss and no bytes. Where a row begins or ends within a character they are up to three bytes off.
    """

    def __init__(self, batches: HeldoutBatches, tokenizer: Tokenizer | None) -> None:
        """Start empty.

        Args:
            batches: the source of the micro-batches, in their order.
            tokenizer: of the text; None where it is not known: then no bytes are counted.
        """
        self._names = source_names(batches.dataset)
        self._owners = _owners(batches)
        self._tokenizer = tokenizer
        layout = dict.fromkeys(("nll", "tokens", "bytes"), len(self._names))
        self._sums = StatisticsAccumulator(layout, device=device())

    def __call__(self, batch: TokenBatch, output: ModelOutput) -> None:
        """Add the next micro-batch."""
        owners = torch.from_numpy(next(self._owners)).to(device())
        has_label = (batch.labels != IGNORED_LABEL).sum(dim=1)
        # [S, B] -> [B]
        of_rows = {
            "nll": output.token_losses.double().sum(dim=0),
            "tokens": has_label,
            "bytes": self._bytes(batch),
        }
        zeros = torch.zeros(len(self._names), dtype=torch.float64, device=device())
        self._sums.add(
            {name: zeros.index_add(0, owners, rows.double().to(device())) for name, rows in of_rows.items()}
        )

    def read(self, groups: ParallelGroups) -> tuple[SourceLoss, ...]:
        """Return the sums over all replicas, without sources that had no token."""
        sums = self._sums.reduce(groups.dp)
        rows = zip(self._names, sums["nll"], sums["tokens"], sums["bytes"], strict=True)
        return tuple(
            SourceLoss(
                name=name,
                num_tokens=int(tokens),
                num_bytes=None if self._tokenizer is None else int(num_bytes),
                loss=nll / tokens,
            )
            for name, nll, tokens, num_bytes in rows
            if tokens > 0
        )

    def _bytes(self, batch: TokenBatch) -> torch.Tensor:
        """[B]."""
        if self._tokenizer is None:
            return torch.zeros(len(batch.tokens))
        labels, first = batch.labels.cpu().numpy(), batch.tokens[:, :1].cpu().numpy()
        # What follows each token; where it is not to be predicted, it is seen as the next token.
        after = np.concatenate([batch.tokens[:, 1:].cpu().numpy(), labels[:, -1:]], axis=1)
        rows = np.concatenate([first, after], axis=1)
        is_target = np.concatenate([np.zeros_like(first, dtype=bool), labels != IGNORED_LABEL], axis=1)
        rows[:, -1][~is_target[:, -1]] = self._tokenizer.eod_id
        return torch.tensor(
            [text_bytes(row, targets, self._tokenizer) for row, targets in zip(rows, is_target, strict=True)]
        )


def text_bytes(tokens: NDArray[np.integer], is_target: NDArray[np.bool_], tokenizer: Tokenizer) -> int:
    """Count the bytes of the text that some tokens of a row encode.

    Args:
        tokens: [S], documents that end with their end-of-document token.
        is_target: [S]; in each document without a gap.
        tokenizer: that encoded them.
    """
    ends = np.flatnonzero(tokens == tokenizer.eod_id) + 1
    total = 0
    for begin, end in zip([0, *ends], [*ends, len(tokens)], strict=True):
        targets = np.flatnonzero(is_target[begin:end])
        if len(targets) > 0:
            first, last = begin + targets[0], begin + targets[-1]
            total += _size(tokens[begin : last + 1], tokenizer) - _size(tokens[begin:first], tokenizer)
    return total


def _size(tokens: NDArray[np.integer], tokenizer: Tokenizer) -> int:
    return len(tokenizer.decode(tokens).encode()) if len(tokens) > 0 else 0


def _owners(batches: HeldoutBatches) -> Iterator[NDArray[np.int64]]:
    """Yield the source of each row, [B], of each micro-batch of this rank."""
    for micro_batches in batches.shares():
        for indices in micro_batches:
            yield owners_of(batches.dataset, indices)
