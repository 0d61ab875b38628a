"""Samples of fixed length over the token stream of a split.

S = tokens per sample, N = tokens of the split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import load_manifest
from pipeline.data.shard_stream import ShardStream
from pipeline.data.stream import TokenStream
from pipeline.shared.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRows:
    """Rows of consecutive tokens.

    Attributes:
        tokens: [rows, S + 1] in the stored type; shorter rows are filled with end-of-document ids.
        lengths: [rows] int64, tokens of each row that are from the stream.
    """

    tokens: NDArray[np.integer]
    lengths: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """The ids of a stream: below ``size``; ``eod_id`` ends every document.

    ``tokenizer_sha256`` is known if the stream has a manifest.
    """

    size: int
    eod_id: int
    tokenizer_sha256: str | None = None


class SampleSource(Protocol):
    """Numbered samples of the same length, in any storage format."""

    @property
    def split(self) -> str:
        """Name of the split, for messages."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The ids that tokens may have."""

    @property
    def stream(self) -> TokenStream:
        """All tokens."""

    def __len__(self) -> int: ...

    def rows(self, indices: Sequence[int]) -> TokenRows:
        """Read samples; an index of -1 makes a row of length 0, for batches that are not full."""


class TokenDataset:
    """A stream cut into samples of S + 1 tokens.

    Sample i begins at token i * S: neighbours share a token, so that every token is predicted once. The last
    sample is shorter if S does not divide N - 1. Pre-shuffled rows share no token: sample i begins at
    i * (S + 1).
    """

    def __init__(
        self,
        stream: TokenStream,
        vocabulary: Vocabulary,
        *,
        split: str,
        seq_length: int,
        is_cut: bool = False,
    ) -> None:
        """Cut the stream of a split into samples.

        Args:
            stream: the tokens.
            vocabulary: their ids.
            split: name of the split.
            seq_length: S.
            is_cut: the stream consists of pre-shuffled rows of S + 1 tokens.
        Raises:
            DataError: the split holds fewer than two tokens, so that nothing can be predicted, or its type
                cannot hold the end-of-document token.
        """
        if seq_length < 1:
            raise DataError(f"training.seq_length must be at least 1, but is {seq_length}")
        if len(stream) < 2:
            raise DataError(
                f"split {split!r} must hold at least 2 tokens, but holds {len(stream)}; "
                "prepare more text or another held-out fraction"
            )
        if vocabulary.eod_id > np.iinfo(stream.dtype).max:
            raise DataError(
                f"data.eod_id must be a token of split {split!r}, whose tokens are {stream.dtype}, but is "
                f"{vocabulary.eod_id}; check data.eod_id and data.token_type"
            )
        self.stream = stream
        self.vocabulary = vocabulary
        self.split = split
        self.seq_length = seq_length
        self._stride = seq_length + is_cut

    def __len__(self) -> int:
        # The last sample has at least one token to predict.
        return (len(self.stream) - 2) // self._stride + 1

    def rows(self, indices: Sequence[int]) -> TokenRows:
        """Read samples; an index of -1 makes a row of length 0, for batches that are not full.

        Raises:
            DataError: a token is not in the vocabulary.
        """
        samples = np.asarray(indices, dtype=np.int64)
        assert (samples < len(self)).all(), f"samples {list(indices)} must be below {len(self)}"
        starts = np.maximum(samples, 0) * self._stride
        lengths = np.where(samples < 0, 0, np.minimum(self.seq_length + 1, len(self.stream) - starts))
        tokens = np.full((len(samples), self.seq_length + 1), self.vocabulary.eod_id, dtype=self.stream.dtype)
        self.stream.read_rows(tokens, starts, lengths)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocabulary.size:
            raise self._foreign_token(samples, tokens)
        return TokenRows(tokens=tokens, lengths=lengths)

    def _foreign_token(self, samples: NDArray[np.int64], tokens: NDArray[np.integer]) -> DataError:
        is_foreign = (tokens < 0) | (tokens >= self.vocabulary.size)
        row = int(np.flatnonzero(is_foreign.any(axis=1))[0])
        return DataError(
            f"tokens of the split {self.split!r} must be in 0..{self.vocabulary.size - 1}, but sample "
            f"{samples[row]} has ids {tokens[row].min()}..{tokens[row].max()}; "
            "check model.vocab_size and data.format, or prepare the data again"
        )


def open_dataset(folder: Path, split: str, *, seq_length: int) -> TokenDataset:
    """Open one split of a prepared folder.

    Raises:
        DataError: the folder is unfinished, damaged or holds pairs, or the split does not exist or is empty.
    """
    manifest = load_manifest(folder)
    if manifest.header.stored_as != "webdataset":
        raise DataError(
            f"{folder} must hold webdataset shards, but holds Megatron pairs; set data.format=megatron and "
            f"data.eod_id={manifest.header.tokenizer.eod_id}"
        )
    tokenizer = manifest.header.tokenizer
    return TokenDataset(
        ShardStream(folder, manifest, split),
        Vocabulary(size=tokenizer.vocab_size, eod_id=tokenizer.eod_id, tokenizer_sha256=tokenizer.sha256),
        split=split,
        seq_length=seq_length,
    )
