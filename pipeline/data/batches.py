"""From samples to the batches of one data-parallel rank.

B = rows of a micro-batch, S = tokens per row.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from megatron_ext.model.micro_batch import TokenBatch
from megatron_ext.ponder.masks import PADDING_DOCUMENT
from pipeline.data.dataset import SampleSource, TokenRows
from pipeline.data.order import Order, SampleOrder, global_batch_indices

NO_LABEL = -100
# The index of a row of padding, in a batch that is not full.
NO_SAMPLE = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class PackingOptions:
    """How documents that share a row are kept apart."""

    reset_positions: bool = True
    reset_attention: bool = True
    mask_document_boundaries: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLayout:
    """How a global batch is divided among data-parallel ranks.

    Raises:
        ValueError: the sizes do not divide, or the rank does not exist.
    """

    global_batch_size: int
    micro_batch_size: int
    dp_rank: int
    dp_size: int

    def __post_init__(self) -> None:
        rows_per_round = self.micro_batch_size * self.dp_size
        if self.global_batch_size < 1 or rows_per_round < 1 or self.global_batch_size % rows_per_round != 0:
            raise ValueError(
                "training.global_batch_size must be a multiple of training.micro_batch_size "
                f"({self.micro_batch_size}) times the data-parallel size ({self.dp_size}), "
                f"but is {self.global_batch_size}; "
                f"try {max(1, self.global_batch_size // max(1, rows_per_round)) * rows_per_round}"
            )
        if not 0 <= self.dp_rank < self.dp_size:
            raise ValueError(
                f"the data-parallel rank must be in 0..{self.dp_size - 1}, but is {self.dp_rank}"
            )

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per rank and global batch."""
        return self.global_batch_size // (self.micro_batch_size * self.dp_size)

    def micro_batches(self, indices: Sequence[int]) -> list[Sequence[int]]:
        """Return this rank's share: ranks take the micro-batches of the global batch in turn."""
        assert len(indices) == self.global_batch_size, (
            f"{len(indices)} samples must be {self.global_batch_size}"
        )
        first = self.dp_rank * self.micro_batch_size
        stride = self.dp_size * self.micro_batch_size
        return [
            indices[start : start + self.micro_batch_size] for start in range(first, len(indices), stride)
        ]


def build_batch(
    dataset: SampleSource,
    indices: Sequence[int],
    *,
    reset_positions: bool,
    reset_attention: bool,
    mask_document_boundaries: bool,
) -> TokenBatch:
    """Pack samples into rows; an index of -1 makes a row of padding.

    Documents end with their end-of-document token. Padding has document id -1, no labels, and the
    end-of-document token as its token.

    Args:
        dataset: source of the samples.
        indices: [B] sample numbers.
        reset_positions: positions start at 0 in every document (and in every row).
        reset_attention: each document of a row has its own id; otherwise all are 0.
        mask_document_boundaries: the last token of a document has no label.
    """
    rows = dataset.rows(indices)
    options = PackingOptions(
        reset_positions=reset_positions,
        reset_attention=reset_attention,
        mask_document_boundaries=mask_document_boundaries,
    )
    return pack_rows(rows, eod_id=dataset.vocabulary.eod_id, options=options)


def pack_rows(rows: TokenRows, *, eod_id: int, options: PackingOptions) -> TokenBatch:
    """Derive labels, positions and document ids from rows of S + 1 tokens.

    There are far fewer documents than tokens: what depends on a document is computed once and then repeated.
    """
    # [B, S + 1] -> [B, S] twice, shifted by one
    tokens = rows.tokens[:, :-1].astype(np.int64)
    labels = rows.tokens[:, 1:].astype(np.int64)
    document_ends = np.flatnonzero(rows.tokens[:, :-1] == eod_id)
    if options.mask_document_boundaries:
        labels.reshape(-1)[document_ends] = NO_LABEL
    pieces = _Pieces.find(document_ends, tokens.shape)
    positions = pieces.positions() if options.reset_positions else _columns(tokens.shape)
    documents = pieces.documents() if options.reset_attention else np.zeros_like(tokens)
    for row in np.flatnonzero(rows.lengths < rows.tokens.shape[1]):
        labels[row, max(0, rows.lengths[row] - 1) :] = NO_LABEL
        documents[row, rows.lengths[row] :] = PADDING_DOCUMENT
    return TokenBatch(
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(labels),
        position_ids=torch.from_numpy(positions),
        document_ids=torch.from_numpy(documents),
    )


def _columns(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return [B, S]: distance of each token from the start of its row."""
    return np.tile(np.arange(shape[1], dtype=np.int64), (shape[0], 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """The parts of documents in the rows of a batch, row by row.

    Attributes:
        shape: [B, S].
        first: [pieces] first token of each, counted through all rows.
        num_tokens: [pieces] length of each.
    """

    shape: tuple[int, ...]
    first: NDArray[np.int64]
    num_tokens: NDArray[np.int64]

    @classmethod
    def find(cls, document_ends: NDArray[np.int64], shape: tuple[int, ...]) -> "_Pieces":
        """Find the pieces: one starts with each row, and after each token that ends a document."""
        row_starts = np.arange(0, math.prod(shape), shape[1])
        behind = document_ends + 1
        first = np.sort(np.concatenate([row_starts, behind[behind % shape[1] != 0]]))
        return cls(shape=shape, first=first, num_tokens=np.diff(first, append=math.prod(shape)))

    def positions(self) -> NDArray[np.int64]:
        """Return [B, S]: distance of each token from the start of its piece."""
        begins: NDArray[np.int64] = np.repeat(self.first, self.num_tokens)
        return np.subtract(np.arange(len(begins)), begins, out=begins).reshape(self.shape)

    def documents(self) -> NDArray[np.int64]:
        """Return [B, S]: number of each token's piece in its row."""
        rows = self.first // self.shape[1]
        first_of_row = np.searchsorted(rows, np.arange(self.shape[0]))
        numbers = np.arange(len(rows)) - first_of_row[rows]
        return np.repeat(numbers, self.num_tokens).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShare:
    """What one rank reads of a global batch: its micro-batches, packed for the model and as rows."""

    micro_batches: list[TokenBatch]
    rows: list[TokenRows]

    def pinned(self) -> "BatchShare":
        """Return the share with micro-batches whose copies to a device do not make the host wait."""
        return replace(self, micro_batches=[batch.pinned() for batch in self.micro_batches])


class TrainingBatches:
    """The batches of one data-parallel rank, by the number of samples consumed before them.

    It has no state: a resumed run needs only the number of consumed samples.
    """

    def __init__(
        self, dataset: SampleSource, order: Order, *, layout: BatchLayout, packing: PackingOptions
    ) -> None:
        if order.num_samples != len(dataset):
            raise ValueError(f"the order must cover {len(dataset)} samples, but covers {order.num_samples}")
        self.dataset = dataset
        self.order = order
        self.layout = layout
        self.packing = packing

    def read(self, consumed_samples: int) -> BatchShare:
        """Read this rank's part of the global batch that begins after ``consumed_samples``."""
        indices = global_batch_indices(self.order, consumed_samples, self.layout.global_batch_size)
        own = [index for share in self.layout.micro_batches(indices) for index in share]
        # All micro-batches at once: with few rows, the cost per call exceeds the cost of the tokens.
        rows = self.dataset.rows(own)
        packed = pack_rows(rows, eod_id=self.dataset.vocabulary.eod_id, options=self.packing)
        size = self.layout.micro_batch_size
        shares = [slice(first, first + size) for first in range(0, len(own), size)]
        return BatchShare(
            micro_batches=[_rows_of(packed, share) for share in shares],
            rows=[TokenRows(tokens=rows.tokens[share], lengths=rows.lengths[share]) for share in shares],
        )

    def micro_batches(self, consumed_samples: int) -> list[TokenBatch]:
        """Return this rank's micro-batches of the global batch that begins after ``consumed_samples``."""
        return self.read(consumed_samples).micro_batches

    def epoch(self, consumed_samples: int) -> float:
        """Return the number of passes over the split after ``consumed_samples``."""
        return consumed_samples / len(self.dataset)


def _rows_of(batch: TokenBatch, rows: slice) -> TokenBatch:
    """Return some rows of a batch as views."""
    return TokenBatch(
        tokens=batch.tokens[rows],
        labels=batch.labels[rows],
        position_ids=batch.position_ids[rows],
        document_ids=batch.document_ids[rows],
    )


class HeldoutBatches:
    """A fixed, finite number of held-out global batches, as this rank's micro-batches.

    Every rank has the same number. No sample occurs twice: if the split is too small for the requested
    number, there are fewer batches, and the last one is filled with rows of padding.
    """

    def __init__(
        self,
        dataset: SampleSource,
        order: SampleOrder,
        *,
        layout: BatchLayout,
        packing: PackingOptions,
        max_global_batches: int,
    ) -> None:
        if max_global_batches < 1:
            raise ValueError(f"evaluation.iters must be at least 1, but is {max_global_batches}")
        num_samples = min(len(dataset), max_global_batches * layout.global_batch_size)
        self.dataset = dataset
        self.layout = layout
        self.packing = packing
        self.num_samples = num_samples
        self._indices = [int(index) for index in order.indices(0, num_samples)]

    def __len__(self) -> int:
        """Return the number of global batches."""
        return -(-self.num_samples // self.layout.global_batch_size)

    def __iter__(self) -> Iterator[list[TokenBatch]]:
        """Yield this rank's micro-batches of each global batch; may be iterated any number of times."""
        for shares in self.shares():
            yield [_build(self.dataset, share, self.packing) for share in shares]

    def shares(self) -> Iterator[list[Sequence[int]]]:
        """Yield the samples of each of these micro-batches."""
        size = self.layout.global_batch_size
        for start in range(0, self.num_samples, size):
            indices = self._indices[start : start + size]
            indices += [NO_SAMPLE] * (size - len(indices))
            yield self.layout.micro_batches(indices)


def _build(dataset: SampleSource, indices: Sequence[int], packing: PackingOptions) -> TokenBatch:
    return pack_rows(dataset.rows(indices), eod_id=dataset.vocabulary.eod_id, options=packing)
