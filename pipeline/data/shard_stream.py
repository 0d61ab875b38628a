"""The tokens of a split of webdataset shards."""

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import ShardManifest
from data_prep.storage.shard_format import token_dtype
from pipeline.data.index import load_or_build_index
from pipeline.data.stream import TokenStream, check_range
from pipeline.shared.errors import DataError


class ShardStream(TokenStream):
    """A split's shards in manifest order, read through memory maps."""

    def __init__(self, folder: Path, manifest: ShardManifest, split: str) -> None:
        """Map the split's shards.

        Raises:
            DataError: a shard is missing, truncated, or not the one in the manifest.
        """
        shards = manifest.split_shards(split)
        self._dtype = token_dtype(manifest.header.token_type)
        self._index = load_or_build_index(folder, shards)
        self._maps = [_map_shard(folder / entry.name, entry.size_bytes) for entry in shards]

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """How a token is stored."""
        return self._dtype

    def __len__(self) -> int:
        return int(self._index.start[-1])

    def pieces(self, start: int, stop: int) -> Iterator[NDArray[np.integer]]:
        """Yield views of the tokens ``start`` .. ``stop``, one per shard member that contains them."""
        check_range(start, stop, len(self))
        run = int(np.searchsorted(self._index.start, start, side="right")) - 1
        while start < stop:
            run_start, run_stop = int(self._index.start[run]), int(self._index.start[run + 1])
            piece_stop = min(stop, run_stop)
            yield self._view(run, start - run_start, piece_stop - start)
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
            if is_in_one_run[number]:
                row[:length] = self._view(run, first_in_run, length)
            else:
                self.read_into(row[:length], int(starts[number]))

    def _view(self, run: int, first: int, count: int) -> NDArray[np.integer]:
        offset_bytes = int(self._index.offset_bytes[run]) + first * self._dtype.itemsize
        return np.frombuffer(
            self._maps[self._index.shard[run]], self._dtype, count=count, offset=offset_bytes
        )


def _map_shard(path: Path, size_bytes: int) -> mmap.mmap:
    found_bytes = path.stat().st_size if path.is_file() else 0
    if found_bytes != size_bytes:
        raise DataError(
            f"{path} must have {size_bytes} bytes, but has {found_bytes}; "
            "run `megaponder data prepare` again: it makes damaged shards again"
        )
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
