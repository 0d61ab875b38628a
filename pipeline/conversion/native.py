"""The native checkpoint of a model, tensor by tensor, without the model.

Megatron stacks each parameter of the layers into one tensor, with the layer as first axis, and stores extra
states of low-precision training with its linear layers, which are empty in models of this program.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoint.content import CONTENT
from pipeline.checkpoint.folder import COMMON_NAME, CONFIG_NAME
from pipeline.checkpoint.offline import Chunk, OfflineReader, OfflineWriter
from pipeline.checkpoint.state import TrainState, write_train_state
from pipeline.config.load import dump_config
from pipeline.config.schema import RunConfig
from pipeline.shared.errors import ConversionError

FILE_BYTES = 4 * 2**30
_PIECE_BYTES = 64 * 2**20
_LAYERS = "decoder.layers."
_LINEAR_LAYERS = (
    "mlp.linear_fc1",
    "mlp.linear_fc2",
    "self_attention.linear_proj",
    "self_attention.linear_qkv",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Location of a parameter in a checkpoint.

    Attributes:
        key: name of the tensor in the checkpoint.
        layer: its index on the first axis; None if the tensor is the parameter itself.
    """

    key: str
    layer: int | None


def place_of(native: str) -> Place:
    """Return the location of a parameter; `native` is its name in a model of one pipeline stage."""
    if not native.startswith(_LAYERS):
        return Place(key=native, layer=None)
    index, _, inner = native.removeprefix(_LAYERS).partition(".")
    return Place(key=f"{_LAYERS}{inner}", layer=int(index))


class NativeReader:
    """Reads parameters of a checkpoint, saved on any parallel layout.

    Args:
        folder: an ``iter_`` folder, complete or being written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.reader = OfflineReader(folder)

    def read(self, native: str, *, rows: int | None = None) -> Tensor:
        """Return a parameter.

        Args:
            native: its name in a model of one pipeline stage.
            rows: how many rows of its first axis to read; None is all.
        Raises:
            ConversionError: there is no such parameter.
        """
        place = place_of(native)
        entry = self.reader.tensors.get(place.key)
        if entry is None or (place.layer is not None and place.layer >= entry.size[0]):
            raise ConversionError(f"{self.folder} must hold {native}, but does not; use another checkpoint")
        leading = 0 if place.layer is None else 1
        sizes = list(entry.size)
        if rows is not None:
            sizes[leading] = min(rows, sizes[leading])
        offsets = [0] * len(sizes)
        if place.layer is not None:
            offsets[0], sizes[0] = place.layer, 1
        values = self.reader.read(place.key, Chunk(offsets=torch.Size(offsets), sizes=torch.Size(sizes)))
        return values if place.layer is None else values.squeeze(0)


class NativeWriter:
    """Writes parameters to a partial checkpoint.

    Args:
        folder: from ``start_partial_checkpoint``.
        num_layers: of the model.
        total_bytes: size of all values, which determines the number of files.
    """

    def __init__(self, folder: Path, *, num_layers: int, total_bytes: int) -> None:
        self._num_layers = num_layers
        self._writer = OfflineWriter(
            folder, num_files=-(-total_bytes // FILE_BYTES) or 1, total_bytes=total_bytes
        )

    def __enter__(self) -> "NativeWriter":
        return self

    def __exit__(self, *reason: Any) -> None:
        if reason[0] is None:
            self._write_extra_states()
        self._writer.__exit__(*reason)

    def write(self, native: str, values: Tensor) -> None:
        """Write a parameter, in pieces of at most 64 MiB or one row."""
        place = place_of(native)
        leading: tuple[int, ...] = () if place.layer is None else (self._num_layers,)
        size = torch.Size((*leading, *values.shape))
        row_bytes = values[:1].nbytes
        for begin, piece in _pieces(values, rows=max(1, _PIECE_BYTES // max(row_bytes, 1))):
            offsets = [begin] + [0] * (values.dim() - 1)
            sizes = tuple(piece.shape)
            if place.layer is not None:
                offsets, sizes, piece = [place.layer, *offsets], (1, *sizes), piece.unsqueeze(0)
            chunk = Chunk(offsets=torch.Size(offsets), sizes=torch.Size(sizes))
            self._writer.write_chunk(place.key, piece, chunk=chunk, size=size)

    def _write_extra_states(self) -> None:
        names = [
            f"{_LAYERS}{linear}._extra_state/shard_{index}_{self._num_layers}"
            for linear in _LINEAR_LAYERS
            for index in range(self._num_layers)
        ]
        for name in (*names, "output_layer._extra_state/shard_0_1"):
            self._writer.write_bytes(name, _serialized([None]))


def write_small_files(folder: Path, config: RunConfig) -> None:
    """Write the files of a checkpoint other than tensors, for a run of zero iterations without optimizer."""
    from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config

    (folder / COMMON_NAME).write_bytes(_serialized({"content_metadata": dict(CONTENT)}))
    save_config(CheckpointingConfig("torch_dist", 1), str(folder))
    dump_config(config, folder / CONFIG_NAME)
    write_train_state(folder, TrainState(iteration=0, consumed_samples=0))


def _pieces(values: Tensor, *, rows: int) -> list[tuple[int, Tensor]]:
    return [(begin, values[begin : begin + rows]) for begin in range(0, len(values), rows)]


def _serialized(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()
