import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.checkpoint.checksums import describe_damage, find_damage, share_files
from tests.unit.pipeline.checkpoint.saved import save

TENSORS = "__0_0.distcp"


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    os.truncate(path, 4)


def _damaged_files(folder: Path) -> list[str]:
    return [damage.file for damage in find_damage(folder)]


def test_the_list_has_every_file_with_its_size_and_sha256(tmp_path: Path) -> None:
    folder = save(tmp_path, 100)
    files = json.loads((folder / "checksums.json").read_text())["files"]
    assert sorted(files) == [TENSORS, "train_state.json"]
    # printf 'tensors of 100' | sha256sum
    digest = "7bd915eae3fea8f32bb2da3b9d6cc12866e1bff73f6831a2328ce9bfab061291"
    assert files[TENSORS] == {"bytes": 14, "sha256": digest}


def _unreadable(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("harm", [_flip, _truncate, Path.unlink, _unreadable])
def test_a_damaged_file_is_reported(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    folder = save(tmp_path, 100)
    assert _damaged_files(folder) == []
    harm(folder / TENSORS)
    assert _damaged_files(folder) == [TENSORS]
    assert TENSORS in describe_damage(find_damage(folder))


def test_the_reason_of_a_truncated_file_is_its_size(tmp_path: Path) -> None:
    folder = save(tmp_path, 100)
    _truncate(folder / TENSORS)
    (damage,) = find_damage(folder)
    assert [int(word) for word in damage.reason.replace(",", "").split() if word.isdigit()] == [14, 4]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": {"a": {}}}', '{"files": 3}'])
def test_a_damaged_list_is_the_damage(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path, 100)
    (folder / "checksums.json").write_text(text)
    assert _damaged_files(folder) == ["checksums.json"]


def test_a_missing_list_is_the_damage(tmp_path: Path) -> None:
    folder = save(tmp_path, 100)
    (folder / "checksums.json").unlink()
    assert _damaged_files(folder) == ["checksums.json"]


def test_sizes_alone_do_not_see_a_flipped_bit(tmp_path: Path) -> None:
    folder = save(tmp_path, 100)
    _flip(folder / TENSORS)
    assert find_damage(folder, reads=False) == []


def test_ranks_share_the_files_evenly_by_size(tmp_path: Path) -> None:
    folder = save(tmp_path, 100)
    files = {f"f{number}": {"bytes": size, "sha256": ""} for number, size in enumerate((5, 3, 2, 1))}
    (folder / "checksums.json").write_text(json.dumps({"files": files}))
    shares = [share_files(folder, rank=rank, world_size=2) for rank in range(2)]
    assert [sorted(share) for share in shares] == [["f0", "f3"], ["f1", "f2"]]


@pytest.mark.parametrize("name", ["../other", "/etc/passwd", "..", "folder/file"])
def test_a_list_with_names_outside_of_the_folder_is_damaged(tmp_path: Path, name: str) -> None:
    folder = save(tmp_path, 3)
    listed = json.loads((folder / "checksums.json").read_text())
    listed["files"][name] = {"bytes": 0, "sha256": ""}
    (folder / "checksums.json").write_text(json.dumps(listed))
    assert [item.file for item in find_damage(folder)] == ["checksums.json"]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_damage_and_is_not_read(tmp_path: Path, kind: str) -> None:
    folder = save(tmp_path, 3)
    listed = json.loads((folder / "checksums.json").read_text())
    listed["files"]["__0_0.distcp"]["bytes"] = 0
    (folder / "checksums.json").write_text(json.dumps(listed))
    (folder / "__0_0.distcp").unlink()
    if kind == "pipe":
        os.mkfifo(folder / "__0_0.distcp")
    elif kind == "device":
        (folder / "__0_0.distcp").symlink_to("/dev/zero")
    else:
        (folder / "__0_0.distcp").mkdir()
    assert [item.file for item in find_damage(folder)] == ["__0_0.distcp"]
