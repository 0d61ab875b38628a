import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.conversion.hf_weights import HuggingFaceWeights
from pipeline.conversion.hf_weights_writing import SafetensorsWriter
from pipeline.shared.errors import ConversionError

VALUES = {
    "a": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "b": torch.randn(4, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(0)),
    "c": torch.tensor([[1.5]]),
}


def write(folder: Path, kind: str) -> Path:
    if kind == "safetensors":
        save_file(VALUES, folder / "model.safetensors")
    elif kind == "bin":
        torch.save(VALUES, folder / "pytorch_model.bin")
    elif kind == "old bin":
        torch.save(VALUES, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        suffix = kind.removeprefix("parts of ")
        stem = "model" if suffix == "safetensors" else "pytorch_model"
        files = {"a": f"{stem}-1.{suffix}", "b": f"{stem}-1.{suffix}", "c": f"{stem}-2.{suffix}"}
        for file in set(files.values()):
            part = {name: VALUES[name] for name in files if files[name] == file}
            save = save_file if suffix == "safetensors" else torch.save
            save(part, folder / file)  # type: ignore[operator]
        write_index(folder, stem, suffix, files)
    return folder


def write_index(folder: Path, stem: str, suffix: str, files: dict[str, str]) -> None:
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin", "parts of safetensors", "parts of bin"])
def test_every_kind_of_file_gives_the_same_tensors(tmp_path: Path, kind: str) -> None:
    weights = HuggingFaceWeights(write(tmp_path, kind))
    assert set(weights.tensors) == set(VALUES)
    for name, value in VALUES.items():
        assert (weights.tensors[name].shape, weights.tensors[name].dtype) == (value.shape, value.dtype)
        assert torch.equal(weights.read(name), value)


def test_safetensors_come_before_bin(tmp_path: Path) -> None:
    write(tmp_path, "bin")
    save_file({"d": torch.ones(1)}, tmp_path / "model.safetensors")
    assert set(HuggingFaceWeights(tmp_path).tensors) == {"d"}


@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_rejected(tmp_path: Path, kind: str, share: float) -> None:
    write(tmp_path, kind)
    (path,) = tmp_path.iterdir()
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(ConversionError, match=path.name):
        HuggingFaceWeights(tmp_path)


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_with_code_in_it_is_rejected_and_not_run(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1), "b": Bomb(tmp_path / "mark")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConversionError, match=r"pytorch_model\.bin"):
        HuggingFaceWeights(tmp_path)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("content", [[torch.ones(1)], {"a": 3}])
def test_a_pickle_of_something_else_is_rejected(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConversionError, match=r"pytorch_model\.bin"):
        HuggingFaceWeights(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"c": "model-3.safetensors"}, r"'model-3\.safetensors'"),
        ({"c": "../other.safetensors"}, r"'\.\./other\.safetensors'"),
        ({"b": "model-2.safetensors"}, r" b;"),
        ({"b": None}, r" b;"),
        ({"x": "model-2.safetensors"}, r" x;"),
    ],
)
def test_an_index_that_does_not_match_is_rejected(
    tmp_path: Path, changes: dict[str, str | None], complaint: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder, "parts of safetensors")
    save_file({"c": VALUES["c"]}, tmp_path / "other.safetensors")
    files = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"} | changes
    named = {name: file for name, file in files.items() if file is not None}
    write_index(folder, "model", "safetensors", named)
    with pytest.raises(ConversionError, match=complaint):
        HuggingFaceWeights(folder)


def test_a_tensor_in_two_files_is_rejected(tmp_path: Path) -> None:
    write(tmp_path, "parts of safetensors")
    save_file({"c": VALUES["c"], "a": VALUES["a"]}, tmp_path / "model-2.safetensors")
    with pytest.raises(ConversionError, match=r"\ba is in model-1\.safetensors and"):
        HuggingFaceWeights(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"weight_map": 3}'])
def test_a_damaged_index_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ConversionError, match=r"model\.safetensors\.index\.json"):
        HuggingFaceWeights(tmp_path)


def test_a_folder_without_weights_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=re.escape(str(tmp_path))):
        HuggingFaceWeights(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_written_in_any_order_is_read_by_the_library(tmp_path: Path, dtype: torch.dtype) -> None:
    values: dict[str, Tensor] = {name: torch.randn(3, size).to(dtype) for name, size in (("x", 2), ("y", 5))}
    path = tmp_path / "model.safetensors"
    writer = SafetensorsWriter(path, {name: tuple(value.shape) for name, value in values.items()}, dtype)
    for name in ("y", "x"):
        assert name in writer.unwritten
        writer.write(name, values[name].t().contiguous().t())
    writer.close()
    assert writer.unwritten == []
    read = load_file(path)
    assert set(read) == set(values)
    for name, value in values.items():
        assert read[name].dtype == dtype
        assert torch.equal(read[name], value)
