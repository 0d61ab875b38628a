"""The tokens of many shards through few open files."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.manifest import load_manifest
from pipeline.data import shard_stream
from pipeline.data.shard_stream import ShardStream
from tests.support.shards import random_documents, write_split


def open_shards() -> int:
    links = Path("/proc/self/fd").iterdir()
    return sum(link.readlink().suffix == ".tar" for link in links if link.is_symlink())


def test_a_split_of_more_shards_than_may_be_open_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_split(tmp_path, random_documents(47))
    manifest = load_manifest(folder)
    assert len(manifest.split_shards("train")) > 2
    whole = np.concatenate(list(ShardStream(folder, manifest, "train").runs()))
    monkeypatch.setattr(shard_stream, "MOST_OPEN_SHARDS", 2)
    before = open_shards()
    stream = ShardStream(folder, manifest, "train")

    starts = np.random.default_rng(1).permutation(len(whole) - 16)
    rows = np.empty((len(starts), 16), dtype=stream.dtype)
    stream.read_rows(rows, starts, np.full(len(starts), 16))

    assert (rows == whole[starts[:, None] + np.arange(16)]).all()
    assert open_shards() <= before + 2
