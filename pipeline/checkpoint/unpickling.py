"""Read the pickled parts of a checkpoint without running anything that they name.

A pickle names callables with their arguments, and an ordinary reader calls them. Here ``.metadata`` is read
by :mod:`pipeline.checkpoint.description` and turned into torch's types; tensors and objects are read by
torch's ``weights_only`` reader, after a check that they name nothing but the few types below. Every size is
compared with what is stored before memory is taken for it.
"""

import io
import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from pipeline.checkpoint.description import ITEM_BYTES, METADATA_NAME, Place, read_description, reason_of
from pipeline.checkpoint.folder import COMMON_NAME
from pipeline.shared.errors import CheckpointError
from pipeline.shared.foreign_files import read_limited, regular_size

_MOST_COMMON_BYTES = 2**28

_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_BYTES}
_TENSOR_TYPES = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    *(
        f"torch {kind}Storage"
        for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    ),
}
# The state of NumPy's random generator is an array.
_OBJECT_TYPES = _TENSOR_TYPES | {
    "_codecs encode",
    "numpy ndarray",
    "numpy dtype",
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
}
# What models that others publish name as well.
_MODEL_TYPES = _TENSOR_TYPES | {
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v3",
    "torch.nn.parameter Parameter",
    "torch.storage UntypedStorage",
    "torch Size",
    *(f"torch {name}" for name in _DTYPES),
}
# A file of torch.save before 1.6: number, version, system, content, keys of the storages.
_PICKLES_OF_OLD_FILE = 5
# Instructions of a pickle that name a type in another way than GLOBAL; torch.save writes none of them.
_OTHER_NAMING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
_ZIP_START = b"PK\x03\x04"


def read_metadata(folder: Path) -> Metadata:
    """Read which tensors and objects a checkpoint holds, and where.

    Returns:
        torch's description. Every chunk lies within its tensor, the chunks are large enough to fill it, and
        each of them has a place in a file of the folder, whose size :func:`check_files` compares.
    Raises:
        CheckpointError: it cannot be read, names other types, or contradicts itself.
    """
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for name, entry in read_description(folder).entries.items():
        if isinstance(entry, Place):
            entries[name] = BytesStorageMetadata()
            storage[MetadataIndex(name)] = _storage_info(entry)
            continue
        chunks = []
        for part in entry.parts:
            chunk = ChunkStorageMetadata(offsets=torch.Size(part.offsets), sizes=torch.Size(part.sizes))
            chunks.append(chunk)
            storage[MetadataIndex(name, chunk.offsets)] = _storage_info(part.place)
        entries[name] = TensorStorageMetadata(
            properties=TensorProperties(dtype=_DTYPES[entry.dtype]),
            size=torch.Size(entry.shape),
            chunks=chunks,
        )
    return Metadata(entries, storage_data=storage, storage_meta=StorageMeta())


def _storage_info(place: Place) -> _StorageInfo:
    return _StorageInfo(place.file, place.offset, place.length)


def check_files(folder: Path, metadata: Metadata) -> None:
    """Check that the files of a checkpoint are as large as its tensors and objects.

    Raises:
        CheckpointError: one is missing, no regular file, or smaller than what it must hold.
    """
    ends: dict[str, int] = {}
    total = 0
    for place in metadata.storage_data.values():
        ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
        total += place.length
    sizes = {name: _size_of(folder / name) for name in ends}
    for name, end in ends.items():
        if sizes[name] < end:
            raise CheckpointError(
                f"{folder / name} must have {end} bytes, but has {sizes[name]}; use another checkpoint"
            )
    if total > sum(sizes.values()):
        raise CheckpointError(
            f"{folder / METADATA_NAME} must give each tensor a place of its own, but describes {total} bytes "
            f"in files of {sum(sizes.values())}; use another checkpoint"
        )


def read_common(folder: Path) -> dict[str, Any]:
    """Read ``common.pt``: what is the same on all ranks.

    Raises:
        CheckpointError: it cannot be read, or holds other types than plain values and tensors.
    """
    path = folder / COMMON_NAME
    try:
        content = read_limited(path, _MOST_COMMON_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({reason_of(error)}); use another checkpoint"
        ) from error
    common = load_object(content, place=str(path))
    if not isinstance(common, dict):
        raise CheckpointError(f"{path} must hold values by name, but does not; use another checkpoint")
    return common


def load_object(content: bytes, *, place: str) -> Any:
    """Return an object that was written by ``torch.save``: plain values, tensors, arrays of numbers.

    Args:
        content: as stored.
        place: where it is from, for the error.
    Raises:
        CheckpointError: it is damaged, or names other types.
    """
    loaded = _load(content, place=place, names=_OBJECT_TYPES)
    for tensor in _tensors_in(loaded):
        _check_tensor(tensor, num_bytes=len(content), place=place)
    return loaded


def load_tensor(content: bytes, *, place: str) -> Tensor:
    """Return a tensor that was written by ``torch.save``.

    Args:
        content, place: see :func:`load_object`.
    Raises:
        CheckpointError: it is damaged, is no plain tensor, or names other types.
    """
    loaded = _load(content, place=place, names=_TENSOR_TYPES)
    if not isinstance(loaded, Tensor):
        raise CheckpointError(f"{place} must hold a tensor, but does not; use another checkpoint")
    _check_tensor(loaded, num_bytes=len(content), place=place)
    return loaded


def load_model_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.bin`` file, memory-mapped where its format allows it.

    Raises:
        OSError: it cannot be read.
        ValueError: it names other types than tensors need, holds other things, or sizes that are not true.
    """
    size = regular_size(path)
    is_archive = zipfile.is_zipfile(path)
    try:
        if is_archive:
            with path.open("rb") as stream:
                _check_members(stream, size, _MODEL_TYPES)
        else:
            with path.open("rb") as stream:
                for _ in range(_PICKLES_OF_OLD_FILE):
                    _check_names(stream, _MODEL_TYPES)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except OSError:
        raise
    # torch raises errors of many types for damaged content.
    except Exception as error:
        raise ValueError(reason_of(error)) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError("it holds something else than tensors by name")
    for name, tensor in content.items():
        if not _is_as_large_as_stored(tensor, size):
            raise ValueError(f"{str(name)[:80]} is no plain tensor as large as it says")
    return {str(name): tensor for name, tensor in content.items()}


def _size_of(path: Path) -> int:
    try:
        return regular_size(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({reason_of(error)}); use another checkpoint"
        ) from error


def _load(content: bytes, *, place: str, names: set[str]) -> Any:
    try:
        _check_archive(content, names)
        with torch.serialization.safe_globals(_numpy_globals()):
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # torch raises errors of many types for damaged content.
    except Exception as error:
        raise CheckpointError(
            f"{place} must hold nothing but values, but would construct or run other things when read, or is "
            f"damaged ({reason_of(error)}); use another checkpoint"
        ) from error


def _check_archive(content: bytes, names: set[str]) -> None:
    """Check that content is an uncompressed archive of torch.save that names only the given types."""
    if not content.startswith(_ZIP_START):
        raise ValueError("it is no archive of torch.save")
    _check_members(io.BytesIO(content), len(content), names)


def _check_members(stream: IO[bytes], num_bytes: int, names: set[str]) -> None:
    with zipfile.ZipFile(stream) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) != len(members):
            raise ValueError("it has several members of one name")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > num_bytes:
                raise ValueError(f"{member.filename[:80]!r} is compressed")
        for member in members:
            if member.filename.endswith("/data.pkl"):
                with archive.open(member) as pickled:
                    _check_names(pickled, names)


def _check_names(pickled: IO[bytes], names: set[str]) -> None:
    for operation, argument, _ in pickletools.genops(pickled):
        named = str(argument) if operation.name == "GLOBAL" else operation.name
        if (operation.name == "GLOBAL" and named not in names) or operation.name in _OTHER_NAMING:
            raise ValueError(f"it names {named[:80]!r}, which is not needed")


def _numpy_globals() -> list[Any]:
    # The name of the module has changed between versions of NumPy.
    reconstruct = np.empty(0).__reduce__()[0]
    names = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
    return [
        *((reconstruct, name) for name in names),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("uint32", "int64", "float64")),
    ]


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield every tensor in nested values, each container once."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, dict | list | tuple) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values() if isinstance(item, dict) else item


def _check_tensor(tensor: Tensor, *, num_bytes: int, place: str) -> None:
    if not _is_as_large_as_stored(tensor, num_bytes):
        raise CheckpointError(
            f"{place} must hold plain tensors as large as they say, but does not; use another checkpoint"
        )


def _is_as_large_as_stored(tensor: Tensor, num_bytes: int) -> bool:
    """Tell whether a tensor needs no more memory than is stored, whatever its strides and sizes say."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        return False
    if tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    return tensor.nbytes <= num_bytes and tensor.untyped_storage().nbytes() <= num_bytes
