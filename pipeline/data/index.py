"""Where the tokens of a split are stored: one row per run of tokens that is contiguous in a shard file."""

import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import MANIFEST_NAME, ShardEntry, load_manifest
from data_prep.regular_files import check_inside
from data_prep.storage.shard_format import MemberPlace, locate_members
from pipeline.data.index_cache import Arrays, cached_arrays
from pipeline.shared.errors import DataError

INDEX_FOLDER = ".index"
# Shards whose headers are read at the same time, because reads on network file systems mostly wait.
NUM_THREADS = 16
_FORMAT = b"megaponder split index 2\n"
_DTYPES: dict[str, np.dtype[Any]] = {
    "shard": np.dtype("<i4"),
    "offset_bytes": np.dtype("<i8"),
    "start": np.dtype("<i8"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitIndex:
    """Runs of tokens in stream order.

    Attributes:
        shard: [runs] int32, position of the run's shard among the split's shards.
        offset_bytes: [runs] int64, offset of the run in its shard file.
        start: [runs + 1] int64, tokens before the run; the last value is the number of tokens of the split.
    """

    shard: NDArray[np.int32]
    offset_bytes: NDArray[np.int64]
    start: NDArray[np.int64]


def load_or_build_index(
    folder: Path, shards: tuple[ShardEntry, ...], *, on_shard: Callable[[], None] | None = None
) -> SplitIndex:
    """Map the cached index of these shards, or build it from their headers and cache it.

    The name of the cache is a hash of the shards' checksums, so that an index of other shards is never used.
    Of several processes that call this at the same time, one builds it.

    Args:
        folder: of the shards.
        shards: of one split, at least one.
        on_shard: called after the headers of each shard were read.
    Raises:
        DataError: a shard is damaged, or another process takes too long to build the index.
    """
    # The index is written: not where somebody else's folder leads.
    check_inside(folder, INDEX_FOLDER)
    place = index_place(folder, shards)
    arrays = cached_arrays(place, _DTYPES, lambda: _arrays(build_index(folder, shards, on_shard=on_shard)))
    return SplitIndex(shard=arrays["shard"], offset_bytes=arrays["offset_bytes"], start=arrays["start"])


def index_place(folder: Path, shards: Sequence[ShardEntry]) -> Path:
    """Return the folder of the index of some shards."""
    return folder / INDEX_FOLDER / f"{shards[0].split}-{_shards_key(shards)}"


def build_index(
    folder: Path, shards: Sequence[ShardEntry], *, on_shard: Callable[[], None] | None = None
) -> SplitIndex:
    """Locate the tokens of shards by reading their headers, of several shards at the same time.

    Raises:
        DataError: a shard is missing or damaged, or its number of tokens is not that of its entry.
    """
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        try:
            located = []
            for places in threads.map(lambda entry: _locate_tokens(folder / entry.name, entry), shards):
                located.append(places)
                if on_shard is not None:
                    on_shard()
        except BaseException:
            # Do not wait for shards that were not started.
            threads.shutdown(cancel_futures=True)
            raise
    counts = np.concatenate([np.empty(0, np.int64), *(places[:, 1] for places in located)])
    return SplitIndex(
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), [len(places) for places in located]),
        offset_bytes=np.concatenate([np.empty(0, np.int64), *(places[:, 0] for places in located)]),
        start=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
    )


def _locate_tokens(path: Path, entry: ShardEntry) -> NDArray[np.int64]:
    """Return [runs, 2]: offset in bytes and number of tokens of each run of a shard."""
    members: list[MemberPlace] = locate_members(path)
    places = [(member.tokens.offset_bytes, member.tokens.count) for member in members]
    num_tokens = sum(count for _, count in places)
    if num_tokens != entry.num_tokens:
        raise DataError(
            f"{path} must hold {entry.num_tokens} tokens, but holds {num_tokens}; "
            "delete the file and run `megaponder data prepare` again: it makes missing shards again"
        )
    return np.array(places, dtype=np.int64).reshape(-1, 2)


def _arrays(index: SplitIndex) -> Arrays:
    return {"shard": index.shard, "offset_bytes": index.offset_bytes, "start": index.start}


def _shards_key(shards: Sequence[ShardEntry]) -> str:
    digest = hashlib.sha256(_FORMAT)
    for entry in shards:
        digest.update(f"{entry.name} {entry.sha256}\n".encode())
    return digest.hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSplit:
    """A split of a folder of shards."""

    folder: Path
    name: str
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedSplit:
    """An index after :func:`index_split`; it is not new if it existed before."""

    num_tokens: int
    is_new: bool
    seconds: float


def splits_to_index(path: Path) -> tuple[ShardSplit, ...]:
    """Return the splits of a folder of shards; none if training reads the folder without an index.

    Raises:
        DataError: training cannot read the folder.
    """
    if not (path / MANIFEST_NAME).exists() and _needs_no_index(path):
        return ()
    manifest = load_manifest(path)
    return tuple(
        ShardSplit(folder=path, name=split, shards=manifest.split_shards(split)) for split in manifest.splits
    )


def index_split(split: ShardSplit, *, on_shard: Callable[[], None] | None = None) -> IndexedSplit:
    """Build the index of a split if it is missing.

    Args:
        split: the split.
        on_shard: called after the headers of each shard were read.
    Raises:
        DataError: a shard is damaged, or the index cannot be stored.
    """
    started = time.monotonic()
    num_read = 0

    def count() -> None:
        nonlocal num_read
        num_read += 1
        if on_shard is not None:
            on_shard()

    index = load_or_build_index(split.folder, split.shards, on_shard=count)
    if not index_place(split.folder, split.shards).is_dir():
        raise DataError(
            f"{split.folder} must be writable to store the index, but is not; make it writable for this "
            "command, or let every rank of a training build the index for itself"
        )
    return IndexedSplit(
        num_tokens=int(index.start[-1]), is_new=num_read > 0, seconds=time.monotonic() - started
    )


def _needs_no_index(path: Path) -> bool:
    """Tell whether a path is a Megatron pair or a part of rows, or a folder of them."""
    if path.is_dir():
        return any(path.glob("*.bin")) or any(path.glob("*/*.bin"))
    return path.suffix == ".bin" or path.with_name(f"{path.name}.bin").is_file()
