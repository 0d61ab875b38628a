"""The weights in a Hugging Face folder, read one tensor at a time.

One file or several with an index, as safetensors or as PyTorch's ``.bin``; safetensors take precedence.
A ``.bin`` is read by :mod:`pipeline.checkpoint.unpickling`, which builds tensors and nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.checkpoint.unpickling import load_model_file
from pipeline.shared.errors import ConversionError
from pipeline.shared.foreign_files import read_json_object

INDEX_SUFFIX = ".index.json"
SAFETENSORS_NAME, BIN_NAME = "model.safetensors", "pytorch_model.bin"
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """File, shape and dtype of a tensor; the dtype is None if it is not one of ``DTYPES``."""

    file: str
    shape: torch.Size
    dtype: torch.dtype | None


class HuggingFaceWeights:
    """All tensors of a folder by name.

    Args:
        folder: with the weights.
    Raises:
        ConversionError: there are no weights, a file is damaged, or the index does not match the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: tuple[str, dict[str, Tensor]] | None = None
        index = _find_index(folder)
        self.index_name = None if index is None else index.name
        named = None if index is None else _read_index(index)
        self.files = [_find_single(folder)] if named is None else sorted(set(named.values()))
        self.tensors: dict[str, StoredTensor] = {}
        for file in self.files:
            for name, stored in self._list(file):
                if name in self.tensors:
                    raise ConversionError(
                        f"{folder} must hold every tensor once, but {name} is in {self.tensors[name].file} "
                        f"and in {file}; download the folder again"
                    )
                self.tensors[name] = stored
        if named is not None:
            _check_index(folder, named, {name: stored.file for name, stored in self.tensors.items()})

    def read(self, name: str) -> Tensor:
        """Return a tensor without keeping its file in memory, as far as the format allows.

        Raises:
            ConversionError: the file cannot be read.
        """
        file = self.tensors[name].file
        if file.endswith(".bin"):
            return self._pickled(file)[name].clone()
        # Opened again for each tensor: pages of the file stay resident as long as it is mapped.
        with _opened(self.folder / file) as stored:
            tensor: Tensor = stored.get_tensor(name)
            return tensor.clone()

    def _list(self, file: str) -> Iterator[tuple[str, StoredTensor]]:
        if file.endswith(".bin"):
            for name, tensor in self._pickled(file).items():
                yield name, StoredTensor(file=file, shape=tensor.shape, dtype=_weight_dtype(tensor.dtype))
            return
        with _opened(self.folder / file) as stored:
            for name in stored.keys():  # noqa: SIM118 (no mapping)
                piece = stored.get_slice(name)
                shape = torch.Size(piece.get_shape())
                yield name, StoredTensor(file=file, shape=shape, dtype=DTYPES.get(piece.get_dtype()))

    def _pickled(self, file: str) -> dict[str, Tensor]:
        """Return the memory-mapped tensors of a file; those of the last file are cached."""
        if self._loaded is None or self._loaded[0] != file:
            self._loaded = None
            self._loaded = (file, _unpickle(self.folder / file))
        return self._loaded[1]


def _find_index(folder: Path) -> Path | None:
    for name in (SAFETENSORS_NAME, BIN_NAME):
        if (folder / name).is_file():
            return None
        if (folder / f"{name}{INDEX_SUFFIX}").is_file():
            return folder / f"{name}{INDEX_SUFFIX}"
    return None


def _find_single(folder: Path) -> str:
    for name in (SAFETENSORS_NAME, BIN_NAME):
        if (folder / name).is_file():
            return name
    raise ConversionError(
        f"{folder} must hold {SAFETENSORS_NAME} or {BIN_NAME}, or one of them in parts with its "
        f"{INDEX_SUFFIX}, "
        "but holds none; give the folder of a complete model"
    )


def _read_index(path: Path) -> dict[str, str]:
    """Return the file of each tensor."""
    try:
        named = read_json_object(path)["weight_map"]
        files = {str(name): str(file) for name, file in named.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(
            f"{path} must be JSON with a weight_map, but cannot be read ({error}); download the folder again"
        ) from error
    for file in sorted(set(files.values())):
        if Path(file).name != file or not (path.parent / file).is_file():
            raise ConversionError(
                f"{path} must list files in the same folder, but {file!r} is not one; download the "
                "complete folder again"
            )
    return files


def _check_index(folder: Path, named: dict[str, str], found: dict[str, str]) -> None:
    differing = sorted(name for name in named.keys() | found.keys() if named.get(name) != found.get(name))
    if differing:
        raise ConversionError(
            f"the index of {folder} must list the file of every tensor, but differs from the files for "
            f"{', '.join(differing[:10])}{' ...' if len(differing) > 10 else ''}; download the folder again"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError) as error:
        raise ConversionError(
            f"{path} must be an intact safetensors file, but cannot be read ({error}); download it again"
        ) from error


def _unpickle(path: Path) -> dict[str, Tensor]:
    try:
        return load_model_file(path)
    except (OSError, ValueError) as error:
        raise ConversionError(
            f"{path} must hold nothing but tensors by name, but would construct or run other things when "
            f"read, or is damaged ({error}); use the safetensors files of the model"
        ) from error


def _weight_dtype(dtype: torch.dtype) -> torch.dtype | None:
    return dtype if dtype in DTYPES.values() else None
