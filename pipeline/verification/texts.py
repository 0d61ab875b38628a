"""Held-out text to compare forward and decoding on: packed rows, and the documents in them."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from pipeline.data.batches import PackingOptions, pack_rows
from pipeline.data.dataset import SampleSource, TokenRows
from pipeline.data.order import SampleOrder


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A document, or its part in a row, which a decoder reads as one sequence.

    Attributes:
        first: number of its first token among the real tokens of the batch, row by row.
        tokens: its ids.
    """

    first: int
    tokens: list[int]


def heldout_rows(
    dataset: SampleSource, *, num_rows: int, num_tokens: int, seed: int, rows_at_once: int
) -> Iterator[TokenBatch]:
    """Read random rows of the split, the same ones for the same seed.

    Documents of a row do not see each other and count positions from 0, however the run packs them, because
    a decoder starts each text at position 0.

    Args:
        dataset: the split.
        num_rows: at most so many rows.
        num_tokens: at most so many tokens of each row.
        seed: of the choice.
        rows_at_once: rows of a batch.
    """
    order = SampleOrder(num_samples=len(dataset), seed=seed, shuffled=True)
    indices = [int(index) for index in order.indices(0, min(num_rows, len(dataset)))]
    for start in range(0, len(indices), rows_at_once):
        rows = dataset.rows(indices[start : start + rows_at_once])
        # A row has one token more, which is the label of its last one.
        cut = TokenRows(
            tokens=rows.tokens[:, : num_tokens + 1], lengths=np.minimum(rows.lengths, num_tokens + 1)
        )
        yield pack_rows(cut, eod_id=dataset.vocabulary.eod_id, options=PackingOptions())


def pieces_of(batch: TokenBatch) -> list[Piece]:
    """Cut a batch into its documents; padding is skipped.

    A row may begin within a document; the rest of it is read as if it began there.
    """
    pieces: list[Piece] = []
    num_tokens = 0
    for row, documents in zip(batch.tokens.tolist(), batch.document_ids.tolist(), strict=True):
        before = PADDING_DOCUMENT
        for token, document in zip(row, documents, strict=True):
            if document == PADDING_DOCUMENT:
                continue
            if document != before:
                pieces.append(Piece(first=num_tokens, tokens=[]))
            pieces[-1].tokens.append(token)
            num_tokens += 1
            before = document
    return pieces
