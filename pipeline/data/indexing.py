"""Indexes made ahead of training, for `megaponder data index`."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data_prep.manifest import MANIFEST_NAME, ShardEntry, load_manifest
from pipeline.data.index import index_place, load_or_build_index
from pipeline.shared.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSplit:
    """A split of a folder of shards."""

    folder: Path
    name: str
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexedSplit:
    """What an index covers, and what it took to make it; not new where it was there already."""

    num_tokens: int
    is_new: bool
    seconds: float


def splits_to_index(path: Path) -> tuple[ShardSplit, ...]:
    """The splits of a folder of shards; none of what training reads without an index.

    Raises:
        DataError: nothing that training reads is there.
    """
    if not (path / MANIFEST_NAME).exists() and _is_readable_as_it_is(path):
        return ()
    manifest = load_manifest(path)
    return tuple(
        ShardSplit(folder=path, name=split, shards=manifest.split_shards(split)) for split in manifest.splits
    )


def index_split(split: ShardSplit, *, on_shard: Callable[[], None] | None = None) -> IndexedSplit:
    """Make a split's index where it is missing.

    Args:
        split: the split.
        on_shard: called after each shard that was looked into.
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
            f"the index must be stored in {split.folder}, but cannot be; make the folder writable for this "
            "command, or let every rank of a training make the index for itself"
        )
    return IndexedSplit(
        num_tokens=int(index.start[-1]), is_new=num_read > 0, seconds=time.monotonic() - started
    )


def _is_readable_as_it_is(path: Path) -> bool:
    """Whether there is a Megatron pair or a part of rows, or a folder of such."""
    if path.is_dir():
        return any(path.glob("*.bin")) or any(path.glob("*/*.bin"))
    return path.suffix == ".bin" or path.with_name(f"{path.name}.bin").is_file()
