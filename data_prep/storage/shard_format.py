"""The format of a shard on disk, and the offsets of its arrays.

A shard is a plain webdataset tar. Sample ``000042`` of it is two members::

    000042.lengths.npy   int32  [pieces]   tokens of each document piece in the sample
    000042.tokens.npy    uint16 or int32 [tokens]   the pieces' tokens, one after the other

Every document ends with the end-of-document id. Each sample holds ``member_tokens`` tokens, the last one of a
shard the rest. So a document may continue in the next sample of its shard, but never in another shard.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.manifest import TokenType
from pipeline.shared.errors import DataError

TOKENS_FIELD = "tokens.npy"
LENGTHS_FIELD = "lengths.npy"
LENGTH_DTYPE = np.dtype("<i4")
_DTYPES: dict[TokenType, np.dtype[np.integer]] = {"uint16": np.dtype("<u2"), "int32": np.dtype("<i4")}
_LONGEST_NPY_HEADER_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayPlace:
    """The place of one array's values in a shard file."""

    offset_bytes: int
    count: int
    dtype: np.dtype[np.integer]

    def last(self) -> "ArrayPlace":
        """Return the place of the last value."""
        offset_bytes = self.offset_bytes + (self.count - 1) * self.dtype.itemsize
        return ArrayPlace(offset_bytes=offset_bytes, count=1, dtype=self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberPlace:
    """The places of the two arrays of one webdataset sample."""

    key: str
    lengths: ArrayPlace
    tokens: ArrayPlace


def token_dtype(token_type: TokenType) -> np.dtype[np.integer]:
    """Return the little-endian numpy type of stored tokens."""
    return _DTYPES[token_type]


def encode_npy(values: NDArray[np.generic]) -> bytes:
    """Return the bytes of a ``.npy`` file, the same on every machine."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def locate_members(path: Path) -> list[MemberPlace]:
    """Find the arrays of a shard by reading only its headers.

    Raises:
        DataError: the file is not a shard of this format, or is truncated.
    """
    arrays = list(_locate_arrays(path))
    pairs = list(zip(arrays[::2], arrays[1::2], strict=False))
    if len(arrays) != 2 * len(pairs):
        raise _damaged(path, "a sample lacks one of its two arrays")
    return [_pair(path, *lengths, *tokens) for lengths, tokens in pairs]


def _pair(
    path: Path, lengths_name: str, lengths: ArrayPlace, tokens_name: str, tokens: ArrayPlace
) -> MemberPlace:
    key, _, field = tokens_name.partition(".")
    if field != TOKENS_FIELD or lengths_name != f"{key}.{LENGTHS_FIELD}":
        raise _damaged(path, f"members {lengths_name} and {tokens_name} are not of the same sample")
    return MemberPlace(key=key, lengths=lengths, tokens=tokens)


def _locate_arrays(path: Path) -> Iterator[tuple[str, ArrayPlace]]:
    """Yield the members of a tar by seeking from header to header."""
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise _damaged(path, f"it cannot be read: {error.strerror}") from error
    with file:
        descriptor = file.fileno()
        file_bytes = os.fstat(descriptor).st_size
        offset = 0
        while (block := os.pread(descriptor, tarfile.BLOCKSIZE, offset)) != tarfile.NUL * tarfile.BLOCKSIZE:
            try:
                member = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
                content = offset + tarfile.BLOCKSIZE
                place = _read_npy_header(os.pread(descriptor, _LONGEST_NPY_HEADER_BYTES, content), content)
            except Exception as error:  # of any kind: a damaged header may have any values
                raise _damaged(path, f"no sample can be read at byte {offset}") from error
            end = place.offset_bytes + place.count * place.dtype.itemsize
            if end != content + member.size or end > file_bytes:
                raise _damaged(path, f"member {member.name} is truncated")
            yield member.name, place
            offset = content + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _read_npy_header(head: bytes, offset_bytes: int) -> ArrayPlace:
    buffer = io.BytesIO(head)
    if np.lib.format.read_magic(buffer) != (1, 0):
        raise ValueError("only version 1.0 of the npy format is written")
    shape, _, dtype = np.lib.format.read_array_header_1_0(buffer)
    if len(shape) != 1 or shape[0] < 1:
        raise ValueError(f"arrays have one dimension and a value, but this one has shape {shape}")
    # Never objects: their bytes would be taken for addresses.
    if dtype not in _DTYPES.values():
        raise ValueError(f"arrays hold tokens or lengths, but this one holds {dtype}")
    return ArrayPlace(offset_bytes=offset_bytes + buffer.tell(), count=shape[0], dtype=dtype)


def _damaged(path: Path, finding: str) -> DataError:
    return DataError(
        f"{path} must be an intact shard, but {finding}; "
        "delete the file and run `megaponder data prepare` again: it makes missing shards again"
    )
