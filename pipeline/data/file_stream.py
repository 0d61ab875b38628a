"""A token stream that is a file: the ``.bin`` of a Megatron pair, or a part of rows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.storage.token_file import TokenFile
from pipeline.data.stream import TokenStream, check_range
from pipeline.shared.errors import DataError


class FileStream(TokenStream):
    """The tokens of one file, which holds nothing else."""

    def __init__(self, path: Path, dtype: np.dtype[np.integer]) -> None:
        """Open the file.

        Raises:
            DataError: it cannot be read, or its size is not that of whole tokens.
        """
        self._file = TokenFile(path)
        self._dtype = dtype
        size_bytes = self._file.size_bytes
        if size_bytes % dtype.itemsize:
            raise DataError(
                f"{path} must hold tokens of {dtype.itemsize} bytes, but has {size_bytes} bytes; check their "
                "type, or copy the file again"
            )
        self._num_tokens = size_bytes // dtype.itemsize

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """How a token is stored."""
        return self._dtype

    def __len__(self) -> int:
        return self._num_tokens

    def pieces(self, start: int, stop: int) -> Iterator[NDArray[np.integer]]:
        """Yield one array."""
        check_range(start, stop, len(self))
        if start < stop:
            yield self._file.read(self._dtype, offset_bytes=start * self._dtype.itemsize, count=stop - start)

    def read_rows(
        self, destination: NDArray[np.integer], starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        """Read rows as `TokenStream` does, without a copy if the destination has the stored type."""
        if destination.dtype != self._dtype:
            super().read_rows(destination, starts, lengths)
            return
        for row, start, length in zip(destination, starts.tolist(), lengths.tolist(), strict=True):
            check_range(start, start + length, len(self))
            self._file.read_into(row[:length], start * self._dtype.itemsize)
