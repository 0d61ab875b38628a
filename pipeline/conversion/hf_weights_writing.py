"""Write the weights of a checkpoint as Hugging Face names and stores them, one tensor at a time."""

import json
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from megatron_ext.model.config import PonderTransformerConfig
from megatron_ext.weights import entries
from pipeline.conversion.certificate import TensorAccount
from pipeline.conversion.hf_weights import INDEX_SUFFIX, SAFETENSORS_NAME
from pipeline.conversion.native import NativeReader
from pipeline.conversion.safetensors_file import SafetensorsWriter
from pipeline.conversion.shapes import Shape, expected_shape
from pipeline.shared.errors import ConversionError


def write_tensors(
    partial: Path,
    reader: NativeReader,
    model: PonderTransformerConfig,
    *,
    dtype: torch.dtype,
    shard_bytes: int,
) -> TensorAccount:
    """Write all parameters of a checkpoint as safetensors, in parts with an index where they are large.

    Args:
        partial: the folder.
        reader: of the checkpoint, which has the tensors of the model.
        model: that it holds.
        dtype: of what is written.
        shard_bytes: of a file, at most, unless one tensor is larger.
    Raises:
        ConversionError: a tensor has another shape, or numbers that are not finite or do not fit the type.
    """
    table = list(entries(model))
    names = [name for entry in table for name in entry.sources]
    shapes = {name: expected_shape(name, model) for name in names}
    files = _plan_files(shapes, itemsize=dtype.itemsize, shard_bytes=shard_bytes)
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
    assert not [name for writer in writers.values() for name in writer.unwritten], "each is in the table"
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


def _plan_files(shapes: dict[str, Shape], *, itemsize: int, shard_bytes: int) -> dict[str, list[str]]:
    """Return the tensors of each file, in order."""
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
    """Return how many values a type does not hold exactly.

    Raises:
        ConversionError: a value is not finite, there or here, or the shape is not the model's.
    """
    if tuple(values.shape) != shape:
        raise ConversionError(f"{name} must have the shape {shape}, but has {tuple(values.shape)}")
    if not torch.isfinite(values).all():
        raise ConversionError(f"{name} must hold finite numbers, but has others; use another checkpoint")
    if dtype == values.dtype:
        return 0
    written = values.to(dtype)
    if not torch.isfinite(written).all():
        raise ConversionError(f"{name} must fit into {dtype}, but has larger numbers; choose another --dtype")
    return int((written.to(values.dtype) != values).sum())


def _write_index(partial: Path, file_of: dict[str, str], shapes: dict[str, Shape], *, itemsize: int) -> None:
    total = sum(torch.Size(shape).numel() for shape in shapes.values()) * itemsize
    content = {"metadata": {"total_size": total}, "weight_map": file_of}
    path = partial / f"{SAFETENSORS_NAME}{INDEX_SUFFIX}"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
