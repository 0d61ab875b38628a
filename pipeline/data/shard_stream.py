"""The tokens of a split of webdataset shards."""

import resource
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import ShardManifest
from data_prep.storage.shard_format import token_dtype
from data_prep.storage.token_file import TokenFile
from pipeline.data.index import load_or_build_index
from pipeline.data.stream import TokenStream, check_range
from pipeline.shared.errors import DataError

# A corpus may have thousands of shards, and a process usually has 1,024 descriptors, but may have fewer.
MOST_OPEN_SHARDS = min(512, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)


class ShardStream(TokenStream):
    """A split's shards in manifest order."""

    def __init__(self, folder: Path, manifest: ShardManifest, split: str) -> None:
        """Open the split's shards.

        Raises:
            DataError: a shard is missing, truncated, or not the one in the manifest.
        """
        shards = manifest.split_shards(split)
        self._dtype = token_dtype(manifest.header.token_type)
        self._index = load_or_build_index(folder, shards)
        self._paths = [folder / entry.name for entry in shards]
        for path, entry in zip(self._paths, shards, strict=True):
            _check_size(path, entry.size_bytes)
        # A file that a thread still reads is closed when that has ended.
        self._open = lru_cache(MOST_OPEN_SHARDS)(TokenFile)

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """How a token is stored."""
        return self._dtype

    def __len__(self) -> int:
        return int(self._index.start[-1])

    def pieces(self, start: int, stop: int) -> Iterator[NDArray[np.integer]]:
        """Yield the tokens ``start`` .. ``stop``, one array per shard member that contains them."""
        check_range(start, stop, len(self))
        run = int(np.searchsorted(self._index.start, start, side="right")) - 1
        while start < stop:
            run_start, run_stop = int(self._index.start[run]), int(self._index.start[run + 1])
            piece_stop = min(stop, run_stop)
            count = piece_stop - start
            yield self._file(run).read(
                self._dtype, offset_bytes=self._offset_bytes(run, start - run_start), count=count
            )
            start = piece_stop
            run += 1

    def read_rows(
        self, destination: NDArray[np.integer], starts: NDArray[np.int64], lengths: NDArray[np.int64]
    ) -> None:
        """Read rows as `TokenStream` does; the runs of all rows are looked up at once."""
        runs = np.searchsorted(self._index.start, starts, side="right") - 1
        first = starts - self._index.start[runs]
        is_in_one_run = starts + lengths <= self._index.start[runs + 1]
        rows = zip(destination, runs.tolist(), first.tolist(), lengths.tolist(), strict=True)
        for number, (row, run, first_in_run, length) in enumerate(rows):
            if is_in_one_run[number] and row.dtype == self._dtype:
                self._file(run).read_into(row[:length], self._offset_bytes(run, first_in_run))
            else:
                self.read_into(row[:length], int(starts[number]))

    def _file(self, run: int) -> TokenFile:
        return self._open(self._paths[self._index.shard[run]])

    def _offset_bytes(self, run: int, first: int) -> int:
        return int(self._index.offset_bytes[run]) + first * self._dtype.itemsize


def _check_size(path: Path, size_bytes: int) -> None:
    found_bytes = path.stat().st_size if path.is_file() else 0
    if found_bytes != size_bytes:
        raise DataError(
            f"{path} must have {size_bytes} bytes, but has {found_bytes}; "
            "run `megaponder data prepare` again: it makes damaged shards again"
        )
