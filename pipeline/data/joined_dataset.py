"""Several sources as one, with samples numbered one source after the other."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import SampleSource, TokenDataset, TokenRows, Vocabulary
from pipeline.data.stream import JoinedStream
from pipeline.shared.errors import DataError


class JoinedDataset:
    """Sources with the same tokenizer and length of samples; no sample has tokens of two sources."""

    def __init__(self, parts: Sequence[TokenDataset], *, names: Sequence[str]) -> None:
        """Join sources.

        Args:
            parts: at least one.
            names: of the parts, for messages.
        Raises:
            DataError: their vocabularies differ.
        """
        for part, name in zip(parts, names, strict=True):
            if part.vocabulary != parts[0].vocabulary:
                raise DataError(
                    f"all data.sources must have the same tokenizer, but {names[0]} has "
                    f"{parts[0].vocabulary} and {name} has {part.vocabulary}; prepare them with one tokenizer"
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
        """The ids that the tokens of all sources may have."""
        return self.parts[0].vocabulary

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, indices: Sequence[int]) -> TokenRows:
        """Read samples; an index of -1 makes a row of length 0."""
        samples, owners = np.asarray(indices, dtype=np.int64), self.owners(indices)
        tokens = np.empty((len(samples), self.parts[0].seq_length + 1), dtype=self.stream.dtype)
        lengths = np.empty(len(samples), dtype=np.int64)
        for number in np.unique(owners).tolist():
            is_here = owners == number
            rows = self.parts[number].rows((samples[is_here] - self._starts[number]).tolist())
            tokens[is_here], lengths[is_here] = rows.tokens, rows.lengths
        return TokenRows(tokens=tokens, lengths=lengths)

    def owners(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Return [rows]: number of each sample's source; the first one for rows of padding."""
        samples = np.asarray(indices, dtype=np.int64)
        owners: NDArray[np.int64] = np.searchsorted(self._starts, samples, side="right") - 1
        return np.maximum(owners, 0)


def parts_of(source: SampleSource) -> tuple[SampleSource, ...]:
    """Return the sources that were joined, or the only one."""
    return source.parts if isinstance(source, JoinedDataset) else (source,)


def source_names(source: SampleSource) -> tuple[str, ...]:
    """Return the names of the sources that were joined, or the name of the split."""
    return source.names if isinstance(source, JoinedDataset) else (source.split,)


def owners_of(source: SampleSource, indices: Sequence[int]) -> NDArray[np.int64]:
    """Return [rows]: which of :func:`source_names` each sample is from."""
    if isinstance(source, JoinedDataset):
        return source.owners(indices)
    return np.zeros(len(indices), dtype=np.int64)
