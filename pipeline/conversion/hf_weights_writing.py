"""Write the weights of a checkpoint as safetensors under their Hugging Face names, one tensor at a time."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from megatron_ext.model.config import PonderTransformerConfig
from megatron_ext.weights import entries
from pipeline.conversion.certificate import TensorAccount
from pipeline.conversion.hf_weights import DTYPES, INDEX_SUFFIX, SAFETENSORS_NAME
from pipeline.conversion.native import NativeReader
from pipeline.conversion.shapes import Shape, expected_shape
from pipeline.shared.errors import ConversionError

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


def write_tensors(
    partial: Path,
    reader: NativeReader,
    model: PonderTransformerConfig,
    *,
    dtype: torch.dtype,
    shard_bytes: int,
) -> TensorAccount:
    """Write all parameters of a checkpoint as safetensors, sharded with an index where they are large.

    Args:
        partial: the folder to write to.
        reader: of the checkpoint, which has the tensors of the model.
        model: the model in the checkpoint.
        dtype: type of the weights in the files.
        shard_bytes: maximum size of a file, unless one tensor is larger.
    Raises:
        ConversionError: a tensor has an unexpected shape, or values that are non-finite or overflow
            ``dtype``.
    """
    table = list(entries(model))
    names = [name for entry in table for name in entry.sources]
    shapes = {name: expected_shape(name, model) for name in names}
    files = plan_shards(shapes, itemsize=dtype.itemsize, shard_bytes=shard_bytes)
    file_of = {name: file for file, inside in files.items() for name in inside}
    writers = {
        file: SafetensorsWriter(partial / file, {name: shapes[name] for name in inside}, dtype)
        for file, inside in files.items()
    }
    rounded, padding, dtypes = 0, {}, Counter[str]()
    try:
        for entry in table:
            values = reader.read(entry.native)
            dtypes[str(values.dtype).removeprefix("torch.")] += 1
            if entry.vocabulary_rows is not None:
                padding[entry.native] = values.shape[0] - entry.vocabulary_rows
            for name, part in zip(entry.sources, entry.split(values[: entry.vocabulary_rows]), strict=True):
                rounded += _num_rounded(name, part, shapes[name], dtype)
                writers[file_of[name]].write(name, part)
    finally:
        for writer in writers.values():
            writer.close()
    assert not [name for writer in writers.values() for name in writer.unwritten], (
        "the table has every tensor"
    )
    if len(files) > 1:
        _write_index(partial, file_of, shapes, itemsize=dtype.itemsize)
    return TensorAccount(
        made_of={name: (entry.native,) for entry in table for name in entry.sources},
        num_read=len(table),
        num_values=sum(torch.Size(shape).numel() for shape in shapes.values()),
        dtypes=dict(dtypes),
        new={},
        padding_rows=padding,
        num_rounded=rounded,
    )


def plan_shards(shapes: Mapping[str, Shape], *, itemsize: int, shard_bytes: int) -> dict[str, list[str]]:
    """Return the tensors of each file, which they fill in order up to ``shard_bytes``."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * itemsize
        if shards[-1] and filled + size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {SAFETENSORS_NAME: shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def _num_rounded(name: str, values: Tensor, shape: Shape, dtype: torch.dtype) -> int:
    """Return how many values ``dtype`` does not represent exactly.

    Raises:
        ConversionError: the shape is not the model's, or a value is non-finite before or after rounding.
    """
    if tuple(values.shape) != shape:
        raise ConversionError(f"{name} must have the shape {shape}, but has {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise ConversionError(f"{name} must be finite, but has non-finite values; use another checkpoint")
    if dtype == values.dtype:
        return 0
    written = values.to(dtype)
    if not torch.isfinite(written).all():
        raise ConversionError(f"{name} must fit into {dtype}, but has larger values; choose another --dtype")
    return int((written.to(values.dtype) != values).sum())


def _write_index(partial: Path, file_of: dict[str, str], shapes: dict[str, Shape], *, itemsize: int) -> None:
    total = sum(torch.Size(shape).numel() for shape in shapes.values()) * itemsize
    content = {"metadata": {"total_size": total}, "weight_map": file_of}
    path = partial / f"{SAFETENSORS_NAME}{INDEX_SUFFIX}"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


class SafetensorsWriter:
    """Writes one safetensors file, its tensors one by one in any order.

    The library's own writer needs all tensors in memory at once. Format: 8 bytes length of the header,
    little-endian; the header, JSON with type, shape and offsets of each tensor; the values
    (https://huggingface.co/docs/safetensors, "Format").

    Args:
        path: a file that does not exist.
        shapes: of all tensors, by name.
        dtype: of all tensors.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._offsets: dict[str, tuple[int, int]] = {}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shapes.items():
            begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
            self._offsets[name] = (begin, end)
            header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._start = 8 + len(text)
        self._stream: IO[bytes] = path.open("xb")
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, values: Tensor) -> None:
        """Write the values of a tensor at its offset."""
        begin, end = self._offsets.pop(name)
        content = values.to(self._dtype).contiguous()
        assert content.nbytes == end - begin, f"{name} has another size than its shape"
        self._stream.seek(self._start + begin)
        self._stream.write(content.view(torch.uint8).numpy().data)

    def close(self) -> None:
        """Flush the file to disk and close it."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    @property
    def unwritten(self) -> list[str]:
        """Tensors that have not been written yet."""
        return sorted(self._offsets)
