"""Pickles of others are read without running them, and without taking more memory than is stored."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from pipeline.checkpoint.offline import Chunk, OfflineReader, OfflineWriter
from pipeline.checkpoint.unpickling import load_model_file, load_object, load_tensor, read_metadata
from pipeline.shared.errors import CheckpointError
from tests.support.foreign import Bomb, change_metadata, saved

VALUES = torch.arange(12, dtype=torch.float32).reshape(3, 4)
WHOLE = Chunk(offsets=torch.Size([0, 0]), sizes=torch.Size([3, 4]))
INDEX = MetadataIndex("weight", torch.Size([0, 0]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with OfflineWriter(tmp_path) as writer:
        writer.write_chunk("weight", VALUES, chunk=WHOLE, size=VALUES.size())
        writer.write_bytes("generator", saved({"state": 1}))
    return tmp_path


def test_metadata_come_back_as_torch_reads_them(folder: Path) -> None:
    with (folder / ".metadata").open("rb") as stream:
        expected = pickle.load(stream)
    found = read_metadata(folder)
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert found.storage_data == expected.storage_data


def tensor(metadata: Metadata) -> Any:
    return metadata.state_dict_metadata["weight"]


def place(metadata: Metadata) -> Any:
    return metadata.storage_data[INDEX]


HUGE = torch.Size([10**6, 10**6])
LIES: dict[str, Callable[[Metadata], object]] = {
    "a shape without its parts": lambda found: setattr(tensor(found), "size", HUGE),
    "a part that is larger than its place": lambda found: (
        setattr(tensor(found), "size", HUGE),
        setattr(tensor(found).chunks[0], "sizes", HUGE),
    ),
    "a part outside of its tensor": lambda found: setattr(tensor(found), "size", torch.Size([2, 4])),
    "a place outside of its file": lambda found: setattr(place(found), "offset", 10**9),
    "a negative place": lambda found: setattr(place(found), "offset", -1),
    "a file outside of the folder": lambda found: setattr(place(found), "relative_path", "../secret"),
    "a full path": lambda found: setattr(place(found), "relative_path", "/etc/passwd"),
    "no place": lambda found: found.storage_data.clear(),
    "a compressed place": lambda found: setattr(place(found), "transform_descriptors", ["zstd"]),
    "a type that is none": lambda found: setattr(tensor(found).properties, "dtype", "float32"),
    "one place for two": lambda found: setattr(
        found.storage_data[MetadataIndex("generator")], "length", 10**9
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_metadata_that_lie_are_refused_before_memory_is_taken(folder: Path, lie: str) -> None:
    (folder.parent / "secret").write_bytes(saved(VALUES))
    change_metadata(folder, LIES[lie])
    with pytest.raises(CheckpointError):
        OfflineReader(folder).read("weight")


@pytest.mark.parametrize("size", [10, 10**7])
def test_a_memo_with_an_absurd_index_is_refused(folder: Path, size: int) -> None:
    (folder / ".metadata").write_bytes(b"\x80\x04Nr" + (2**31 - 1).to_bytes(4, "little") + b"." * size)
    with pytest.raises(CheckpointError, match=r"\.metadata"):
        read_metadata(folder)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_not_read(folder: Path, kind: str) -> None:
    path = folder / "__0_0.distcp"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp"):
        OfflineReader(folder).read("weight")


def test_generators_of_numpy_and_torch_are_objects() -> None:
    state = {
        "numpy": np.random.RandomState(3).get_state(),
        "torch": torch.get_rng_state(),
        "python": (1, (2,)),
    }
    found = load_object(saved(state), place="here")
    assert found["numpy"][1].tolist() == state["numpy"][1].tolist()
    assert torch.equal(found["torch"], state["torch"])
    assert found["python"] == (1, (2,))


class Reduced:
    """Pickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize(
    "content",
    [
        Reduced(bytearray, 10**12),
        Reduced(eval, "1"),
        Reduced(getattr, "", "join"),
        Reduced(Path, "x"),
        {"nested": [Reduced(os.getcwd)]},
    ],
    ids=["bytearray", "eval", "getattr", "Path", "nested"],
)
@pytest.mark.parametrize("is_old", [False, True])
def test_an_object_that_names_a_call_is_refused(content: Any, is_old: bool) -> None:
    with pytest.raises(CheckpointError):
        load_object(saved(content, is_old=is_old), place="here")


def test_a_tensor_that_is_larger_than_its_values_is_refused(tmp_path: Path) -> None:
    wide = saved(torch.zeros(1).expand(10**6, 10**6))
    for load in (load_object, load_tensor):
        with pytest.raises(CheckpointError):
            load(wide, place="here")
    (tmp_path / "pytorch_model.bin").write_bytes(saved({"a": torch.zeros(1).expand(10**6, 10**6)}))
    with pytest.raises(ValueError, match="a"):
        load_model_file(tmp_path / "pytorch_model.bin")


def test_values_that_are_fewer_than_their_storage_says_are_refused() -> None:
    with zipfile.ZipFile(io.BytesIO(saved(VALUES))) as source:
        members = {name: source.read(name) for name in source.namelist()}
    (values,) = [name for name in members if "/data/" in name and name.endswith("/0")]
    members[values] = members[values][:4]
    shortened = io.BytesIO()
    with zipfile.ZipFile(shortened, "w", zipfile.ZIP_STORED) as target:
        for name, content in members.items():
            target.writestr(name, content)
    with pytest.raises(CheckpointError):
        load_tensor(shortened.getvalue(), place="here").sum()


def test_compressed_values_are_refused() -> None:
    compressed = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(torch.zeros(10**6)))) as source,
        zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError):
        load_tensor(compressed.getvalue(), place="here")


def test_no_environment_variable_lets_code_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(CheckpointError):
        load_object(saved(Bomb(tmp_path / "mark")), place="here")
    assert not (tmp_path / "mark").exists()
