"""The tokens of a split as one long array that is never completely in memory."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

# The most that `runs` yields at a time.
_RUN_TOKENS = 1 << 22


class TokenStream(ABC):
    """Tokens 0..len-1, which can be read in any order."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype[np.integer]:
        """How a token is stored."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def pieces(self, start: int, stop: int) -> Iterator[NDArray[np.integer]]:
        """Yield the tokens ``start`` .. ``stop`` as views, one per contiguous run."""

    def read_into(self, destination: NDArray[np.integer], start: int) -> None:
        """Fill ``destination`` [n] with tokens ``start`` .. ``start + n``, which must exist."""
        filled = 0
        for piece in self.pieces(start, start + len(destination)):
            destination[filled : filled + len(piece)] = piece
            filled += len(piece)

    def read_rows(
        self, destination: NDArray[np.integer], starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        """Fill the first ``lengths[i]`` tokens of ``destination[i]`` with those from ``starts[i]`` on.

        Args:
            destination: [rows, n]; tokens after a row's length are not changed.
            starts, lengths: [rows]; the tokens must exist.
        """
        for row, start, length in zip(destination, starts.tolist(), lengths.tolist(), strict=True):
            self.read_into(row[:length], start)

    def runs(self) -> Iterator[NDArray[np.integer]]:
        """Yield the stream in order, as views of a few million tokens."""
        for start in range(0, len(self), _RUN_TOKENS):
            yield from self.pieces(start, min(start + _RUN_TOKENS, len(self)))


class ArrayStream(TokenStream):
    """The tokens of one array, which may be a memory map."""

    def __init__(self, tokens: NDArray[np.integer]) -> None:
        """Read from ``tokens`` [n]."""
        # A view of the base class: slices of numpy's memmap class cost several times more.
        self._tokens = np.asarray(tokens)

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """How a token is stored."""
        stored: np.dtype[np.integer] = self._tokens.dtype
        return stored

    def __len__(self) -> int:
        return len(self._tokens)

    def pieces(self, start: int, stop: int) -> Iterator[NDArray[np.integer]]:
        """Yield one view."""
        check_range(start, stop, len(self))
        if start < stop:
            yield self._tokens[start:stop]

    def read_rows(
        self, destination: NDArray[np.integer], starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        """Read rows as `TokenStream` does, without a generator per row."""
        for row, start, length in zip(destination, starts.tolist(), lengths.tolist(), strict=True):
            check_range(start, start + length, len(self))
            row[:length] = self._tokens[start : start + length]


class JoinedStream(TokenStream):
    """Several streams, one after the other."""

    def __init__(self, streams: Sequence[TokenStream]) -> None:
        """Join ``streams`` in this order."""
        self._streams = tuple(streams)
        lengths = [len(stream) for stream in self._streams]
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """A type that can hold the tokens of every stream."""
        joined: np.dtype[np.integer] = np.result_type(*[stream.dtype for stream in self._streams])
        return joined

    def __len__(self) -> int:
        return int(self._starts[-1])

    def pieces(self, start: int, stop: int) -> Iterator[NDArray[np.integer]]:
        """Yield the pieces of every stream that holds some of the tokens."""
        check_range(start, stop, len(self))
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            first, end = int(self._starts[number]), int(self._starts[number + 1])
            yield from self._streams[number].pieces(start - first, min(stop, end) - first)
            start, number = min(stop, end), number + 1


def check_range(start: int, stop: int, length: int) -> None:
    """Check that tokens ``start`` .. ``stop`` exist."""
    assert 0 <= start <= stop <= length, f"tokens {start}..{stop} must be within 0..{length}"
