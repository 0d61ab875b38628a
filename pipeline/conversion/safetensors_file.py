"""Write a safetensors file tensor by tensor: the library's own writer wants all of them at once.

Format: 8 bytes length of the header, little-endian; the header, JSON with type, shape and place of each
tensor; the values (https://huggingface.co/docs/safetensors, "Format").
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from pipeline.conversion.hf_weights import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


class SafetensorsWriter:
    """Writes one file, its tensors in any order.

    Args:
        path: a file that does not exist.
        shapes: of all tensors, by name.
        dtype: of all tensors.
    """

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._places: dict[str, tuple[int, int]] = {}
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, shape in shapes.items():
            begin, end = end, end + torch.Size(shape).numel() * dtype.itemsize
            self._places[name] = (begin, end)
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        self._start = 8 + len(text)
        self._stream: IO[bytes] = path.open("xb")
        self._stream.write(len(text).to_bytes(8, "little") + text)

    def write(self, name: str, values: Tensor) -> None:
        """Write the values of a tensor at its place."""
        begin, end = self._places.pop(name)
        content = values.to(self._dtype).contiguous()
        assert content.nbytes == end - begin, f"{name} has another size than was announced"
        self._stream.seek(self._start + begin)
        self._stream.write(content.view(torch.uint8).numpy().data)

    def close(self) -> None:
        """Wait until the file is on disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()

    @property
    def unwritten(self) -> list[str]:
        """Tensors that were announced and have not come."""
        return sorted(self._places)
