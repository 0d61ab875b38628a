"""Read and write the tensors of a checkpoint in one process: no ranks, no model, one chunk at a time.

A checkpoint in the format of ``torch.distributed.checkpoint`` has a file ``.metadata`` with the shape, the
type and the chunks of each tensor, and the file, the offset and the length of each chunk. A chunk holds its
values as written by ``torch.save``; objects other than tensors are plain bytes.
"""

import io
import pickle
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from pipeline.checkpoint.content import OPTIMIZER_PREFIXES
from pipeline.checkpoint.description import METADATA_NAME
from pipeline.checkpoint.unpickling import check_files, load_object, load_tensor, read_metadata
from pipeline.shared.errors import CheckpointError

Chunk = ChunkStorageMetadata


def full_chunk(size: torch.Size) -> Chunk:
    """Return the chunk that covers a tensor."""
    return Chunk(offsets=torch.Size([0] * len(size)), sizes=size)


def as_chunk(values: Tensor, chunk: Chunk, *, place: str) -> Tensor:
    """Return values in the shape of their chunk: Megatron stores some without leading axes of size 1.

    Raises:
        CheckpointError: there are more or fewer of them.
    """
    if values.numel() != chunk.sizes.numel():
        raise CheckpointError(
            f"{place} must have a part of shape {list(chunk.sizes)}, but has {list(values.shape)}; "
            "use another checkpoint"
        )
    return values.reshape(chunk.sizes)


class OfflineReader:
    """A reader of the tensors of one checkpoint.

    Args:
        folder: an ``iter_`` folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def metadata(self) -> Metadata:
        """The content of the checkpoint's ``.metadata``.

        Raises:
            CheckpointError: it cannot be read.
        """
        return read_metadata(self.folder)

    @cached_property
    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """Shape, type and chunks of each tensor, by name in alphabetic order."""
        found = self.metadata.state_dict_metadata
        return {
            name: entry for name, entry in sorted(found.items()) if isinstance(entry, TensorStorageMetadata)
        }

    @cached_property
    def objects(self) -> list[str]:
        """Names of the objects other than tensors: the generators of each rank."""
        found = self.metadata.state_dict_metadata
        return sorted(name for name, entry in found.items() if isinstance(entry, BytesStorageMetadata))

    @property
    def num_bytes(self) -> int:
        """Size of all tensors."""
        return sum(num_bytes_of(entry) for entry in self.tensors.values())

    @property
    def num_weight_bytes(self) -> int:
        """Size of the tensors that are no state of an optimizer."""
        return sum(
            num_bytes_of(entry)
            for name, entry in self.tensors.items()
            if not name.startswith(OPTIMIZER_PREFIXES)
        )

    @property
    def num_weights(self) -> int:
        """Number of values that are no state of an optimizer."""
        return sum(
            entry.size.numel()
            for name, entry in self.tensors.items()
            if not name.startswith(OPTIMIZER_PREFIXES)
        )

    def read_bytes(self, name: str) -> bytes:
        """Return an object as it was written.

        Raises:
            CheckpointError: it holds more than plain values, or is damaged.
        """
        content = self._stored(MetadataIndex(name))
        load_object(content, place=self._place(name))
        return content

    def read_chunk(self, name: str, chunk: Chunk) -> Tensor:
        """Return one of the chunks of a tensor.

        Raises:
            CheckpointError: another value than this part of the tensor is stored there, or it is damaged.
        """
        content = self._stored(MetadataIndex(name, chunk.offsets))
        return as_chunk(load_tensor(content, place=self._place(name)), chunk, place=self._place(name))

    def read(self, name: str, region: Chunk | None = None) -> Tensor:
        """Return a tensor or a rectangular part of it, assembled from its chunks.

        Args:
            name: of the tensor.
            region: the part to return; None means all of it.
        """
        entry = self.tensors[name]
        wanted = region or full_chunk(entry.size)
        assert self._places, "sizes are true before memory is taken for them"
        values = torch.empty(wanted.sizes, dtype=entry.properties.dtype)
        for chunk in entry.chunks:
            overlap = _overlap(wanted, chunk)
            if overlap is not None:
                into, of = overlap
                values[into] = self.read_chunk(name, chunk)[of]
        return values

    def _place(self, name: str) -> str:
        return f"{name} in {self.folder}"

    @cached_property
    def _places(self) -> dict[MetadataIndex, _StorageInfo]:
        """Where everything is, in files that are as large as it is."""
        check_files(self.folder, self.metadata)
        places: dict[MetadataIndex, _StorageInfo] = self.metadata.storage_data
        return places

    def _stored(self, index: MetadataIndex) -> bytes:
        info = self._places[index]
        with (self.folder / info.relative_path).open("rb") as stream:
            stream.seek(info.offset)
            content: bytes = stream.read(info.length)
            return content


class OfflineWriter:
    """A writer of tensors into a folder, one file after the other.

    The metadata is written at the end of its context: the chunks must then cover their tensors.

    Args:
        folder: an empty folder.
        num_files: maximum number of files for the tensors; fewer are written if chunks are large.
        total_bytes: size of all values that will be written, for files of equal size.
    """

    def __init__(self, folder: Path, *, num_files: int = 1, total_bytes: int = 0) -> None:
        self._folder = folder
        self._max_files = num_files
        self._total_bytes = total_bytes
        self._written_bytes = 0
        self._num_files = 0
        self._stream: IO[bytes] | None = None
        self._entries: dict[str, Any] = {}
        self._storage: dict[MetadataIndex, _StorageInfo] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        if kind is None:
            self._write_metadata()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write an object as it is."""
        self._entries[name] = BytesStorageMetadata()
        self._append(MetadataIndex(name), content)

    def write_chunk(self, name: str, values: Tensor, *, chunk: Chunk, size: torch.Size) -> None:
        """Write one chunk of a tensor.

        Args:
            name: of the tensor.
            values: of the chunk.
            chunk: its place in the tensor.
            size: shape of the tensor.
        """
        if name not in self._entries:
            properties = TensorProperties.create_from_tensor(values)
            self._entries[name] = TensorStorageMetadata(properties=properties, size=size, chunks=[])
        self._entries[name].chunks.append(chunk)
        content = io.BytesIO()
        # Cloned, because torch.save writes the whole storage of a view.
        torch.save(values.clone(), content)
        self._append(MetadataIndex(name, chunk.offsets), content.getvalue())
        self._written_bytes += values.nbytes

    def _append(self, index: MetadataIndex, content: bytes) -> None:
        stream = self._current_file()
        self._storage[index] = _StorageInfo(Path(stream.name).name, stream.tell(), len(content))
        stream.write(content)

    def _current_file(self) -> IO[bytes]:
        share = self._total_bytes * self._num_files / self._max_files
        is_full = self._written_bytes >= share and self._num_files < self._max_files
        if self._stream is not None and not is_full:
            return self._stream
        if self._stream is not None:
            self._stream.close()
        self._stream = (self._folder / f"__0_{self._num_files}.distcp").open("xb")
        self._num_files += 1
        return self._stream

    def _write_metadata(self) -> None:
        metadata = Metadata(self._entries, storage_data=self._storage, version=CURRENT_DCP_VERSION)
        with (self._folder / METADATA_NAME).open("xb") as stream:
            pickle.dump(metadata, stream)


def num_bytes_of(entry: TensorStorageMetadata) -> int:
    """Return the size of a tensor's values."""
    return entry.size.numel() * torch.empty((), dtype=entry.properties.dtype).element_size()


def pieces_of(reader: OfflineReader) -> Iterator[tuple[str, Chunk]]:
    """Yield all chunks of all tensors."""
    for name, entry in reader.tensors.items():
        for chunk in entry.chunks:
            yield name, chunk


def _overlap(wanted: Chunk, chunk: Chunk) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Return the overlap of two parts of a tensor, as indices into the first and the second."""
    into, of = [], []
    for start, size, other_start, other_size in zip(
        wanted.offsets, wanted.sizes, chunk.offsets, chunk.sizes, strict=True
    ):
        begin, end = max(start, other_start), min(start + size, other_start + other_size)
        if begin >= end and size > 0:
            return None
        into.append(slice(begin - start, end - start))
        of.append(slice(begin - other_start, end - other_start))
    return tuple(into), tuple(of)
