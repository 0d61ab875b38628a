"""Where the tokens of a split lie: one row per run of tokens that is contiguous in a shard file."""

import hashlib
import io
import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.errors import DataError
from data_prep.files import write_atomically
from data_prep.manifest import ShardEntry
from data_prep.shard_format import locate_members

logger = logging.getLogger(__name__)

INDEX_FOLDER = ".index"
_FORMAT = b"megaponder split index 1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitIndex:
    """Runs of tokens in stream order.

    Attributes:
        shard: [runs] int32, position of the run's shard among the split's shards.
        offset_bytes: [runs] int64, where the run begins in its shard file.
        start: [runs + 1] int64, tokens before the run; the last value is the number of tokens of the split.
    """

    shard: NDArray[np.int32]
    offset_bytes: NDArray[np.int64]
    start: NDArray[np.int64]


def load_or_build_index(folder: Path, shards: tuple[ShardEntry, ...]) -> SplitIndex:
    """Read the cached index of these shards, or build it from their headers and cache it.

    The cache's name is a hash of the shards' checksums, so an index of other shards is never taken.
    """
    path = folder / INDEX_FOLDER / f"{shards[0].split}-{_shards_key(shards)}.npz"
    if (cached := _load(path)) is not None:
        return cached
    index = build_index(folder, shards)
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, _dump(index))
    except PermissionError:
        logger.info("the index of %s is not cached, because the folder is not writable", folder)
    except OSError as error:
        logger.warning("the index of %s is not cached: %s", folder, error)
    return index


def build_index(folder: Path, shards: tuple[ShardEntry, ...]) -> SplitIndex:
    """Locate the tokens of shards; only headers are read.

    Raises:
        DataError: a shard is missing, damaged, or holds another number of tokens than its entry says.
    """
    shard_numbers: list[int] = []
    offsets: list[int] = []
    counts: list[int] = []
    for number, entry in enumerate(shards):
        places = [member.tokens for member in locate_members(folder / entry.name)]
        _check_count(folder / entry.name, entry, sum(place.count for place in places))
        shard_numbers += [number] * len(places)
        offsets += [place.offset_bytes for place in places]
        counts += [place.count for place in places]
    return SplitIndex(
        shard=np.array(shard_numbers, dtype=np.int32),
        offset_bytes=np.array(offsets, dtype=np.int64),
        start=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)]),
    )


def _check_count(path: Path, entry: ShardEntry, num_tokens: int) -> None:
    if num_tokens != entry.num_tokens:
        raise DataError(
            f"{path} must hold {entry.num_tokens} tokens, but holds {num_tokens}; "
            "delete the file and run `megaponder data prepare` again: it makes missing shards anew"
        )


def _shards_key(shards: tuple[ShardEntry, ...]) -> str:
    digest = hashlib.sha256(_FORMAT)
    for entry in shards:
        digest.update(f"{entry.name} {entry.sha256}\n".encode())
    return digest.hexdigest()[:32]


def _dump(index: SplitIndex) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, shard=index.shard, offset_bytes=index.offset_bytes, start=index.start)
    return buffer.getvalue()


def _load(path: Path) -> SplitIndex | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return SplitIndex(
                shard=arrays["shard"], offset_bytes=arrays["offset_bytes"], start=arrays["start"]
            )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logger.warning("the cached index %s cannot be read and is built again: %s", path, error)
        return None
