import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data_prep.manifest import ShardEntry, load_manifest
from pipeline.cli import app
from pipeline.data import index_cache
from pipeline.data.dataset import open_dataset
from pipeline.data.index import SplitIndex, build_index, index_place, load_or_build_index, splits_to_index
from pipeline.data.index_cache import Arrays, cached_arrays
from pipeline.shared.errors import DataError
from tests.support.shards import random_documents, stream_of, write_split
from tests.unit.pipeline.data.conftest import DOCUMENTS
from tests.unit.pipeline.data.test_opening import write_pair, write_rows

DTYPES = {"numbers": np.dtype("<i8")}


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> tuple[Path, tuple[ShardEntry, ...]]:
    """A fresh copy without an index, and its entries."""
    copy = shutil.copytree(folder, tmp_path / "shards", ignore=shutil.ignore_patterns(".index"))
    return copy, load_manifest(copy).split_shards("train")


def runs_of(index: SplitIndex) -> list[tuple[int, int, int]]:
    rows = zip(index.shard.tolist(), index.offset_bytes.tolist(), index.start.tolist()[1:], strict=True)
    return list(rows)


def build_numbers(calls: list[int]) -> Arrays:
    calls.append(1)
    return {"numbers": np.arange(50, dtype=np.int64)}


def test_an_index_has_the_offset_of_every_token(shards: tuple[Path, tuple[ShardEntry, ...]]) -> None:
    folder, entries = shards
    index = build_index(folder, entries)
    found: list[int] = []
    for number in range(len(index.shard)):
        content = (folder / entries[index.shard[number]].name).read_bytes()
        count = int(index.start[number + 1] - index.start[number])
        found += np.frombuffer(content, "<u2", count, int(index.offset_bytes[number])).tolist()
    assert found == stream_of(DOCUMENTS)


@pytest.mark.parametrize("most_bytes", [0, index_cache.MOST_BYTES_IN_MEMORY])
def test_a_stored_index_is_read_or_mapped_and_no_shard_is_read(
    shards: tuple[Path, tuple[ShardEntry, ...]], monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    monkeypatch.setattr(index_cache, "MOST_BYTES_IN_MEMORY", most_bytes)
    seen: list[int] = []
    built = load_or_build_index(*shards, on_shard=lambda: seen.append(1))
    assert len(seen) == len(shards[1])
    again = load_or_build_index(*shards, on_shard=lambda: seen.append(1))
    assert len(seen) == len(shards[1])
    assert runs_of(built) == runs_of(again) == runs_of(build_index(*shards))
    for array in (again.shard, again.offset_bytes, again.start):
        assert isinstance(array.base, np.memmap) == (most_bytes == 0)
        assert not array.flags.writeable


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing", "no sums", "garbage"])
def test_a_damaged_index_is_rebuilt(shards: tuple[Path, tuple[ShardEntry, ...]], damage: str) -> None:
    expected = runs_of(load_or_build_index(*shards))
    place = index_place(*shards)
    contents = {path.name: path.read_bytes() for path in place.iterdir()}
    path = place / ("sha256" if damage in ("no sums", "garbage") else "start.npy")
    content = path.read_bytes()
    if damage in ("missing", "no sums"):
        path.unlink()
    else:
        flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
        path.write_bytes({"cut": content[:150], "flipped": flipped, "garbage": b"\xff\xfe"}[damage])
    assert runs_of(load_or_build_index(*shards)) == expected
    assert {path.name: path.read_bytes() for path in place.iterdir()} == contents


def test_an_index_that_cannot_be_stored_is_used_from_memory(
    shards: tuple[Path, tuple[ShardEntry, ...]],
) -> None:
    folder, _ = shards
    (folder / ".index").write_bytes(b"in the way")
    assert runs_of(load_or_build_index(*shards)) == runs_of(build_index(*shards))
    assert open_dataset(folder, "train", seq_length=8).rows([0]).tokens.tolist() == [stream_of(DOCUMENTS)[:9]]


def test_of_many_processes_at_the_same_time_one_builds(tmp_path: Path) -> None:
    calls: list[int] = []
    results: list[Arrays] = []

    def ask() -> None:
        results.append(cached_arrays(tmp_path / "cache" / "a", DTYPES, lambda: build_numbers(calls)))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(calls) == 1
    assert [result["numbers"].tolist() for result in results] == [list(range(50))] * 8


def test_the_wait_for_another_builder_has_a_limit(tmp_path: Path) -> None:
    place = tmp_path / "cache" / "a"
    is_inside, may_leave = threading.Event(), threading.Event()

    def build() -> Arrays:
        is_inside.set()
        may_leave.wait(20)
        return build_numbers([])

    slow = threading.Thread(target=lambda: cached_arrays(place, DTYPES, build))
    slow.start()
    try:
        assert is_inside.wait(20)
        with pytest.raises(DataError, match=r"megaponder data index"):
            cached_arrays(place, DTYPES, build, wait_seconds=0.2)
    finally:
        may_leave.set()
        slow.join(timeout=20)


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path) -> None:
    place = tmp_path / "cache" / "a"

    def fail() -> Arrays:
        raise DataError("no shard")

    with pytest.raises(DataError, match="no shard"):
        cached_arrays(place, DTYPES, fail)
    assert not place.exists()
    assert cached_arrays(place, DTYPES, lambda: build_numbers([]))["numbers"].sum() == 1225


def test_the_command_makes_the_index_that_training_maps(tmp_path: Path) -> None:
    folder = write_split(tmp_path / "shards", random_documents(30))
    write_pair(tmp_path / "pair", DOCUMENTS)
    write_rows(tmp_path / "rows" / "train")
    arguments = ["data", "index", *(str(tmp_path / name) for name in ("shards", "pair", "rows"))]
    first, second = (CliRunner().invoke(app, arguments) for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    assert "5 shards" in first.output
    assert "5 shards" in second.output
    seen: list[int] = []
    load_or_build_index(folder, load_manifest(folder).split_shards("train"), on_shard=lambda: seen.append(1))
    assert seen == []


def test_a_path_without_data_has_no_index(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json"):
        splits_to_index(tmp_path)
