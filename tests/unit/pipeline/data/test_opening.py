"""From data settings to samples, for one path and for a blend."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config.schema import DataConfig
from pipeline.data.batches import BatchLayout, PackingOptions, TrainingBatches
from pipeline.data.fingerprint import combine_digests, row_digests
from pipeline.data.opening import Reading, open_heldout, open_training, training_order
from pipeline.shared.errors import DataError
from tests.support.shards import random_documents, stream_of, write_split
from tests.unit.pipeline.data.test_formats import write_rows

READING = Reading(seq_length=16, vocab_size=None)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of shards and one of rows."""
    root = tmp_path_factory.mktemp("sources")
    write_split(root / "a", random_documents(40, seed=1))
    write_split(root / "b", random_documents(60, seed=2))
    write_rows(root / "rows")
    return root


def settings(root: Path, **changes: Any) -> DataConfig:
    sources = [{"path": root / "a", "weight": 0.75}, {"path": root / "b", "weight": 0.25, "max_epochs": 2}]
    return DataConfig.model_validate({"sources": sources} | changes)


def batches(data: DataConfig, *, dp_rank: int = 0, dp_size: int = 1, micro: int = 2) -> TrainingBatches:
    source = open_training(data, READING)
    layout = BatchLayout(global_batch_size=8, micro_batch_size=micro, dp_rank=dp_rank, dp_size=dp_size)
    order = training_order(data, source, seed=5)
    return TrainingBatches(source, order, layout=layout, packing=PackingOptions())


def data_hashes(data: DataConfig, *, start: int = 0, dp_size: int = 1, micro: int = 2) -> list[str]:
    ranks = [batches(data, dp_rank=rank, dp_size=dp_size, micro=micro) for rank in range(dp_size)]
    return [
        combine_digests([row_digests(rank.read(consumed).rows) for rank in ranks])
        for consumed in range(start, 640, 8)
    ]


@pytest.mark.parametrize(("dp_size", "micro"), [(1, 8), (2, 2), (4, 1)])
def test_global_batches_of_a_blend_do_not_depend_on_layout_or_resumes(
    root: Path, dp_size: int, micro: int
) -> None:
    whole = data_hashes(settings(root))
    assert data_hashes(settings(root), start=320, dp_size=dp_size, micro=micro) == whole[40:]


def test_a_blend_of_one_source_is_the_plain_path(root: Path) -> None:
    plain = DataConfig(path=root / "a")
    assert data_hashes(settings(root, sources=[{"path": root / "a"}])) == data_hashes(plain)


def test_samples_of_a_blend_are_those_of_its_sources(root: Path) -> None:
    data = settings(root)
    joined = open_training(data, READING)
    alone = [open_training(DataConfig(path=root / name), READING) for name in "ab"]
    rows = [part.rows(range(len(part))).tokens for part in alone]
    indices = [*range(len(joined)), -1]
    found = joined.rows(indices)
    assert found.tokens[:-1].tolist() == np.concatenate(rows).tolist()
    assert found.lengths[-1] == 0
    assert len(joined.stream) == sum(len(part.stream) for part in alone)
    order = training_order(data, joined, seed=5)
    assert list(order.samples_by_source(400)) == ["a", "b"]
    assert sum(order.samples_by_source(400).values()) == 400


def test_held_out_text_is_that_of_all_sources_or_lies_elsewhere(root: Path, tmp_path: Path) -> None:
    for name in "ab":
        shutil.copytree(root / name, tmp_path / name)
    data = settings(tmp_path, train_split="other", heldout_split="train")
    assert len(open_heldout(data, READING)) == len(open_training(settings(root), READING))
    elsewhere = settings(root, heldout_path=root / "b", heldout_split="train")
    assert len(open_heldout(elsewhere, READING)) == len(open_training(DataConfig(path=root / "b"), READING))
    bare = {"format": "rows", "eod_id": 0, "heldout_path": root / "b", "heldout_split": "train"}
    mixed = DataConfig.model_validate({"path": root / "rows", "heldout_format": "webdataset"} | bare)
    reading = Reading(seq_length=16, vocab_size=100)
    assert (
        open_heldout(mixed, reading).rows([0]).tokens[0].tolist()
        == stream_of(random_documents(60, seed=2))[:17]
    )
    with pytest.raises(DataError, match=r"give data\.heldout_path"):
        open_heldout(DataConfig(path=root / "rows", format="rows", eod_id=0), reading)


def test_sources_of_different_tokenizers_are_refused(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "a", tmp_path / "a")
    shutil.copytree(root / "b", tmp_path / "b")
    manifest = tmp_path / "b" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"eod_id": 0', '"eod_id": 1'))
    with pytest.raises(DataError, match=r"all data\.sources must have one tokenizer, but a has .* and b has"):
        open_training(settings(tmp_path), READING)
