"""Several sources as one, their samples numbered one source after the other."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import SampleSource, TokenDataset, TokenRows, Vocabulary
from pipeline.data.stream import JoinedStream
from pipeline.shared.errors import DataError


class JoinedDataset:
    """Sources of one tokenizer and one length of samples; no sample has tokens of two sources."""

    def __init__(self, parts: Sequence[TokenDataset], *, names: Sequence[str]) -> None:
        """Join sources.

        Args:
            parts: at least one.
            names: of the parts, for messages.
        Raises:
            DataError: their tokens do not mean the same.
        """
        for part, name in zip(parts, names, strict=True):
            if part.vocabulary != parts[0].vocabulary:
                raise DataError(
                    f"all data.sources must have one tokenizer, but {names[0]} has {parts[0].vocabulary} and "
                    f"{name} has {part.vocabulary}; prepare them with the same tokenizer"
                )
        self.parts = tuple(parts)
        self.names = tuple(names)
        self.stream = JoinedStream([part.stream for part in parts])
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)

    @property
    def split(self) -> str:
        """Name of the split."""
        return self.parts[0].split

    @property
    def vocabulary(self) -> Vocabulary:
        """What the tokens of all sources are."""
        return self.parts[0].vocabulary

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, indices: Sequence[int]) -> TokenRows:
        """Read samples; an index of -1 gives a row of length 0."""
        samples, owners = np.asarray(indices, dtype=np.int64), self.owners(indices)
        tokens = np.empty((len(samples), self.parts[0].seq_length + 1), dtype=self.stream.dtype)
        lengths = np.empty(len(samples), dtype=np.int64)
        for number in np.unique(owners).tolist():
            is_here = owners == number
            rows = self.parts[number].rows((samples[is_here] - self._starts[number]).tolist())
            tokens[is_here], lengths[is_here] = rows.tokens, rows.lengths
        return TokenRows(tokens=tokens, lengths=lengths)

    def owners(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Return the number of each sample's source, [rows]; rows of no sample come from the first one."""
        samples = np.asarray(indices, dtype=np.int64)
        owners: NDArray[np.int64] = np.searchsorted(self._starts, samples, side="right") - 1
        return np.maximum(owners, 0)


def parts_of(source: SampleSource) -> tuple[SampleSource, ...]:
    """The sources that were joined, or the only one."""
    return source.parts if isinstance(source, JoinedDataset) else (source,)


def source_names(source: SampleSource) -> tuple[str, ...]:
    """Names of the sources that were joined, or the split's of the only one."""
    return source.names if isinstance(source, JoinedDataset) else (source.split,)


def owners_of(source: SampleSource, indices: Sequence[int]) -> NDArray[np.int64]:
    """Return which of :func:`source_names` each sample is from, [rows]."""
    if isinstance(source, JoinedDataset):
        return source.owners(indices)
    return np.zeros(len(indices), dtype=np.int64)
