"""Samples of fixed length over the token stream of a split.

S = tokens per sample, N = tokens of the split.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import DataError
from data_prep.manifest import ShardManifest, load_manifest
from pipeline.data.stream import TokenStream


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRows:
    """Rows of consecutive tokens.

    Attributes:
        tokens: [rows, S + 1] int64; where a row is shorter, end-of-document ids fill it up.
        lengths: [rows] int64, tokens of each row that come from the stream.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]


class TokenDataset:
    """Sample i is the S + 1 tokens from i * S on; neighbours share one, so every token is predicted once.

    The last sample is shorter where S does not divide N - 1; no token is left out.
    """

    def __init__(self, stream: TokenStream, manifest: ShardManifest, *, split: str, seq_length: int) -> None:
        """Cut the stream of a split into samples.

        Raises:
            DataError: the split holds fewer than two tokens, so nothing can be predicted.
        """
        if seq_length < 1:
            raise DataError(f"training.seq_length must be at least 1, but is {seq_length}")
        if len(stream) < 2:
            raise DataError(
                f"split {split!r} must hold at least 2 tokens, but holds {len(stream)}; "
                "prepare more text or another held-out fraction"
            )
        self.stream = stream
        self.manifest = manifest
        self.split = split
        self.seq_length = seq_length

    @property
    def eod_id(self) -> int:
        """The token that ends every document."""
        return self.manifest.header.tokenizer.eod_id

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self.manifest.header.tokenizer.vocab_size

    def __len__(self) -> int:
        return -(-(len(self.stream) - 1) // self.seq_length)

    def rows(self, indices: Sequence[int]) -> TokenRows:
        """Read samples; an index of -1 gives a row of length 0, for batches that are not full."""
        tokens = np.full((len(indices), self.seq_length + 1), self.eod_id, dtype=np.int64)
        lengths = np.zeros(len(indices), dtype=np.int64)
        for row, index in enumerate(indices):
            if index < 0:
                continue
            assert index < len(self), f"sample {index} must be below {len(self)}"
            start = index * self.seq_length
            lengths[row] = min(self.seq_length + 1, len(self.stream) - start)
            self.stream.read_into(tokens[row, : lengths[row]], start)
        return TokenRows(tokens=tokens, lengths=lengths)


def open_dataset(folder: Path, split: str, *, seq_length: int) -> TokenDataset:
    """Open one split of a prepared folder.

    Raises:
        DataError: the folder is not finished or damaged, or the split does not exist or is empty.
    """
    manifest = load_manifest(folder)
    return TokenDataset(TokenStream(folder, manifest, split), manifest, split=split, seq_length=seq_length)
