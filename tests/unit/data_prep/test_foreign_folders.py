"""Folders of somebody else: nothing outside them is read or written, and damage is one error."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.conversion import convert
from data_prep.inspection import inspect_shards
from data_prep.manifest import MANIFEST_NAME, load_manifest
from data_prep.storage.shard_format import encode_npy, locate_members
from data_prep.storage.stored_tokens import open_stored
from pipeline.data.dataset import open_dataset
from pipeline.data.index import load_or_build_index
from pipeline.data.row_stream import open_parts
from pipeline.shared.errors import DataError
from tests.support.shards import random_documents, write_split
from tests.unit.data_prep.conftest import Prepared

HOSTILE_NAMES = ["/etc/passwd", "../secret", "a/b", "a\\b", "..", ".", "", "a\0b", "a\x1b[2J", "n" * 300]


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / MANIFEST_NAME).read_bytes())
    change(content)
    (folder / MANIFEST_NAME).write_text(json.dumps(content))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_split(tmp_path / "shards", random_documents(20))


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("field", ["tokenizer", "shard", "split", "pair"])
def test_a_name_that_is_no_file_name_is_refused(shards: Path, name: str, field: str) -> None:
    def change(content: dict[str, Any]) -> None:
        if field == "tokenizer":
            content["header"]["tokenizer"]["file"] = name
        elif field == "pair":
            content["pairs"] = [{"name": name, "bin_bytes": 1, "idx_bytes": 1, "idx_sha256": ""}]
        else:
            content["shards"][0]["name" if field == "shard" else "split"] = name

    change_manifest(shards, change)
    with pytest.raises(DataError, match="manifest"):
        load_manifest(shards)


@pytest.mark.parametrize("value", [-1, 1 << 63, 10**400])
@pytest.mark.parametrize("place", ["num_tokens", "size_bytes"])
def test_a_number_that_is_no_count_is_refused(shards: Path, value: int, place: str) -> None:
    change_manifest(shards, lambda content: content["shards"][0].update({place: value}))
    with pytest.raises(DataError, match="manifest"):
        load_manifest(shards)


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"", b"null"])
def test_a_manifest_that_is_none_is_refused(shards: Path, content: bytes) -> None:
    (shards / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(DataError, match="manifest"):
        load_manifest(shards)


def test_a_manifest_that_is_a_pipe_is_not_waited_for(shards: Path) -> None:
    (shards / MANIFEST_NAME).unlink()
    os.mkfifo(shards / MANIFEST_NAME)
    with pytest.raises(DataError, match="manifest"):
        load_manifest(shards)


def test_links_that_lead_out_of_the_folder_are_refused_and_others_are_followed(
    prepared: Prepared, tmp_path: Path
) -> None:
    convert(prepared.folder, tmp_path / "pairs", stored_as="megatron")
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    for name in ("train.bin", "heldout.idx", "tokenizer.model"):
        path = tmp_path / "pairs" / name
        content = path.read_bytes()
        path.unlink()
        path.symlink_to(secret)
        with pytest.raises(DataError, match=name):
            load_manifest(tmp_path / "pairs")
        (tmp_path / "pairs" / f"{name}-2").write_bytes(content)
        path.unlink()
        path.symlink_to(f"{name}-2")
        load_manifest(tmp_path / "pairs")


def test_a_linked_file_beside_the_manifest_is_not_copied(prepared: Prepared, tmp_path: Path) -> None:
    convert(prepared.folder, tmp_path / "pairs", stored_as="megatron")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "pairs" / "special_tokens_map.json").symlink_to(tmp_path / "secret")
    with pytest.raises(DataError, match="special_tokens_map"):
        convert(tmp_path / "pairs", tmp_path / "back", stored_as="webdataset")
    assert not (tmp_path / "back").exists()


def test_an_index_is_not_written_where_a_link_leads(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (shards / ".index").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="index"):
        load_or_build_index(shards, load_manifest(shards).split_shards("train"))
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("dtype", ["O", "<f8", "<i8", "V4"])
def test_a_shard_of_other_types_is_refused(shards: Path, dtype: str) -> None:
    shard = shards / load_manifest(shards).shards[0].name
    content = shard.read_bytes()
    header = encode_npy(np.zeros(1, "<i4"))[:128]
    position = content.index(header[:60])
    changed = content[position : position + 128].replace(b"'<i4'", f"{dtype!r}".encode().ljust(5))
    shard.write_bytes(content[:position] + changed[:128] + content[position + 128 :])
    with pytest.raises(DataError, match="intact"):
        locate_members(shard)


def damage(path: Path) -> list[bytes]:
    content = path.read_bytes()
    middle = len(content) // 2
    return [b"", content[:-1], content[:middle], content[:middle] + b"\xff" * 64 + content[middle + 64 :]]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_damaged_pairs_are_one_error_or_a_finding(
    prepared: Prepared, tmp_path: Path, suffix: str, number: int
) -> None:
    folder = tmp_path / "pairs"
    convert(prepared.folder, folder, stored_as="megatron")
    path = folder / f"train{suffix}"
    path.write_bytes(damage(path)[number])
    manifest = load_manifest(folder)
    assert inspect_shards(folder, num_samples=0 if suffix == ".idx" else 1, verify=True).problems
    with pytest.raises(DataError):
        convert(folder, tmp_path / "back", stored_as="webdataset")
    assert not (tmp_path / "back").exists()
    stored = open_stored(folder, manifest)
    for entry in manifest.shards:
        try:
            for _ in stored.documents(entry):
                pass
        except DataError:
            pass


@pytest.mark.parametrize("kind", ["shards", "rows"])
def test_a_file_that_is_truncated_while_it_is_open_is_an_error(shards: Path, kind: str) -> None:
    if kind == "shards":
        dataset = open_dataset(shards, "train", seq_length=8)
        path, stream = shards / load_manifest(shards).shards[-1].name, dataset.stream
    else:
        path = shards / "rows.bin"
        np.zeros(9000, "<u2").tofile(path)
        stream = open_parts((path,), token_type="uint16", row_tokens=9)
    tokens = np.empty((1, 9), stream.dtype)
    start, length = np.array([len(stream) - 9]), np.array([9])
    stream.read_rows(tokens, start, length)
    os.truncate(path, 512)
    with pytest.raises(DataError, match="truncated"):
        stream.read_rows(tokens, start, length)
    with pytest.raises(DataError, match="truncated"):
        [*stream.pieces(len(stream) - 9, len(stream))]
    with pytest.raises(DataError, match="truncated"):
        stream.read_into(np.empty(9, np.int64), len(stream) - 9)


def test_leftovers_of_interrupted_conversions_and_indexes_are_removed(shards: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f".pairs.tmp-0123{name.encode().hex()}").mkdir()
    convert(shards, tmp_path / "pairs", stored_as="megatron")
    entries = load_manifest(shards).split_shards("train")
    load_or_build_index(shards, entries)
    (place,) = (path for path in (shards / ".index").iterdir() if path.is_dir())
    leftover = place.with_name(f".{place.name}.tmp-0123ab")
    place.rename(leftover)
    load_or_build_index(shards, entries)
    names = {path.name for folder in (tmp_path, shards / ".index") for path in folder.iterdir()}
    assert not [name for name in names if ".tmp-" in name]
