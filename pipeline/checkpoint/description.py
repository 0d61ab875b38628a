"""Which tensors and objects a checkpoint holds, from its ``.metadata``, without running what that names.

A pickle names callables with their arguments, and an ordinary reader calls them. Here it becomes inert
records, which are checked: every size is compared with what is stored before memory is taken for it. Nothing
here imports torch.
"""

import io
import pickle
import pickletools
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pipeline.shared.errors import CheckpointError
from pipeline.shared.foreign_files import read_limited

METADATA_NAME = ".metadata"
ITEM_BYTES = {
    **dict.fromkeys(("float64", "int64"), 8),
    **dict.fromkeys(("float32", "int32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool"), 1),
}
"""The types of values that a checkpoint may hold, by torch's names, with the size of a value."""

_MOST_METADATA_BYTES = 2**30
_MOST_AXES = 16
_LONGEST_AXIS = 2**48

_DCP = "torch.distributed.checkpoint"
_METADATA_TYPES = (
    *(
        (f"{_DCP}.metadata", kind)
        for kind in (
            "Metadata",
            "TensorStorageMetadata",
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "TensorProperties",
            "MetadataIndex",
            "StorageMeta",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    # The folder that was written, which nothing uses.
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
)
_NUMBERED_MEMO = {"PUT", "BINPUT", "LONG_BINPUT"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where something is stored.

    Attributes:
        file: its name in the folder.
        offset, length: in bytes.
    """

    file: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPart:
    """A rectangular part of a tensor, which lies within it.

    Attributes:
        offsets, sizes: by axis.
        place: large enough for its values.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Attributes:
        shape: by axis.
        dtype: a key of :data:`ITEM_BYTES`.
        parts: enough of them to fill it.
    """

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[StoredPart, ...]

    @property
    def num_bytes(self) -> int:
        """Size of its values."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a checkpoint holds.

    Attributes:
        entries: tensors, and the places of other objects, by name in the order of the file.
    """

    entries: dict[str, StoredTensor | Place]

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """The tensors, by name in alphabetic order."""
        found = sorted(self.entries.items())
        return {name: entry for name, entry in found if isinstance(entry, StoredTensor)}


def read_description(folder: Path) -> Description:
    """Read which tensors and objects a checkpoint holds, and where.

    Returns:
        a description that does not contradict itself; the files are not looked at.
    Raises:
        CheckpointError: it cannot be read, names other types, or contradicts itself.
    """
    path = folder / METADATA_NAME
    try:
        content = read_limited(path, _MOST_METADATA_BYTES)
        _refuse_large_memo(content)
        return _as_description(_RecordUnpickler(io.BytesIO(content)).load())
    # Damaged pickles raise errors of any type.
    except Exception as error:
        raise CheckpointError(
            f"{path} must describe the tensors, but cannot be read ({reason_of(error)}); "
            "use another checkpoint"
        ) from error


def reason_of(error: Exception) -> str:
    """Return the first line of an error, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


class _Record:
    """Stands for an object in a pickle: what it would be constructed from, and its state."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "_Record":
        self = super().__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state


_RECORDS = {name: type(name[1], (_Record,), {}) for name in _METADATA_TYPES}


class _TypeName(str):
    """Stands for a type of values."""

    __slots__ = ()


class _RecordUnpickler(pickle.Unpickler):
    """Builds records in place of all objects."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in ITEM_BYTES:
            return _TypeName(name)
        if (module, name) in _RECORDS:
            return _RECORDS[module, name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is not needed")


def _refuse_large_memo(content: bytes) -> None:
    """Refuse an index for which the reader would take gigabytes: it numbers objects in order."""
    for number, (operation, argument, _) in enumerate(pickletools.genops(content)):
        if operation.name in _NUMBERED_MEMO and int(argument or 0) > number:
            raise ValueError("it numbers objects that it does not have")


def _as_description(read: Any) -> Description:
    state = _fields(read, "Metadata")
    places = {
        (_text(_fields(index, "MetadataIndex")["fqn"]), _offset(index)): _as_place(place)
        for index, place in dict(state["storage_data"]).items()
    }
    entries: dict[str, StoredTensor | Place] = {}
    for name, entry in dict(state["state_dict_metadata"]).items():
        is_object = _kind(entry) == "BytesStorageMetadata"
        entries[_text(name)] = places[name, None] if is_object else _as_tensor(entry, name, places)
    return Description(entries=entries)


def _as_tensor(
    entry: Any, name: str, places: dict[tuple[str, tuple[int, ...] | None], Place]
) -> StoredTensor:
    state = _fields(entry, "TensorStorageMetadata")
    dtype, shape = _dtype_of(state["properties"]), _as_size(state["size"])
    parts = []
    for chunk in list(state["chunks"]):
        found = _fields(chunk, "ChunkStorageMetadata")
        offsets, sizes = _as_size(found["offsets"]), _as_size(found["sizes"])
        ends = [start + length for start, length in zip(offsets, sizes, strict=True)]
        if len(ends) != len(shape) or any(end > axis for end, axis in zip(ends, shape, strict=True)):
            raise ValueError(f"a part of {name} lies outside of it")
        place = places[name, offsets]
        if prod(sizes) * ITEM_BYTES[dtype] > place.length:
            raise ValueError(f"a part of {name} is larger than its place in {place.file}")
        parts.append(StoredPart(offsets=offsets, sizes=sizes, place=place))
    if sum(prod(part.sizes) for part in parts) < prod(shape):
        raise ValueError(f"parts of {name} are missing")
    return StoredTensor(shape=shape, dtype=dtype, parts=tuple(parts))


def _dtype_of(properties: Any) -> str:
    """Return the type of the values; torch ignores the other properties."""
    if _kind(properties) != "TensorProperties" or not isinstance(properties.state, tuple):
        raise ValueError("a tensor has no properties")
    dtype = properties.state[0]
    if not isinstance(dtype, _TypeName):
        raise ValueError(f"a tensor has the type {dtype!r}")
    return str(dtype)


def _as_place(place: Any) -> Place:
    state = _fields(place, "_StorageInfo")
    name, offset, length = _text(state["relative_path"]), state["offset"], state["length"]
    if Path(name).name != name or name in ("", ".", "..") or "\0" in name:
        raise ValueError(f"{name[:80]!r} is not the name of a file in the folder")
    if not all(type(number) is int and 0 <= number <= _LONGEST_AXIS for number in (offset, length)):
        raise ValueError(f"{name} has no place for its content")
    if state.get("transform_descriptors"):
        raise ValueError(f"{name} is compressed, which is not supported")
    return Place(file=name, offset=offset, length=length)


def _offset(index: Any) -> tuple[int, ...] | None:
    offset = _fields(index, "MetadataIndex").get("offset")
    return None if offset is None else _as_size(offset)


def _as_size(value: Any) -> tuple[int, ...]:
    if _kind(value) == "Size":
        (value,) = value.arguments
    axes = tuple(value)
    if len(axes) > _MOST_AXES or not all(type(axis) is int and 0 <= axis <= _LONGEST_AXIS for axis in axes):
        raise ValueError(f"a shape is {str(axes)[:80]}")
    return axes


def _fields(record: Any, kind: str) -> dict[str, Any]:
    if _kind(record) != kind or not isinstance(record.state, dict):
        raise ValueError(f"it holds no {kind} where one must be")
    return record.state


def _kind(record: Any) -> str:
    return type(record).__name__ if isinstance(record, _Record) else ""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a name is no text")
    return value
