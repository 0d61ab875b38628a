"""A file of tokens, read at offsets.

It is not mapped into memory: a process that touches a page of a mapped file that was truncated meanwhile, or
whose disk fails, is killed with a bus error and cannot say why.
"""

import os
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.shared.errors import DataError

Scalar = TypeVar("Scalar", bound=np.generic)


class TokenFile:
    """An open file; reads do not share a position, so that threads and forked processes may use it."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            DataError: it does not exist or cannot be read.
        """
        self._descriptor = -1
        self._path = path
        try:
            # A pipe that nobody writes to must not be waited for.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise self._unreadable(error) from error

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    @property
    def size_bytes(self) -> int:
        """Size of the file now."""
        return os.fstat(self._descriptor).st_size

    def read(self, dtype: np.dtype[Scalar], *, offset_bytes: int, count: int) -> NDArray[Scalar]:
        """Return [count]: values that are stored at an offset.

        Raises:
            DataError: the file ends before, or cannot be read.
        """
        if offset_bytes + count * dtype.itemsize > self.size_bytes:
            # Before memory is reserved for what a damaged header promises.
            raise self._truncated()
        values = np.empty(count, dtype=dtype)
        self.read_into(values, offset_bytes)
        return values

    def read_into(self, destination: NDArray[np.generic], offset_bytes: int) -> None:
        """Fill an array, whose values are contiguous, with the bytes at an offset.

        Raises:
            DataError: the file ends before, or cannot be read.
        """
        try:
            num_bytes = os.preadv(self._descriptor, (destination.data,), offset_bytes)
            if num_bytes < destination.nbytes:
                self._read_rest(destination.data.cast("B")[num_bytes:], offset_bytes + num_bytes)
        except OSError as error:
            raise self._unreadable(error) from error

    def _read_rest(self, destination: memoryview, offset_bytes: int) -> None:
        while destination:
            num_bytes = os.preadv(self._descriptor, (destination,), offset_bytes)
            if num_bytes == 0:
                raise self._truncated()
            destination, offset_bytes = destination[num_bytes:], offset_bytes + num_bytes

    def _truncated(self) -> DataError:
        return DataError(
            f"{self._path} must not be shorter than its manifest or index says, but is truncated; copy it "
            "again, or run `megaponder data prepare` again: it makes damaged shards again"
        )

    def _unreadable(self, error: OSError) -> DataError:
        return DataError(
            f"{self._path} must be readable, but is not ({error.strerror}); check the file, its permissions "
            "and the disk, or copy it again"
        )
