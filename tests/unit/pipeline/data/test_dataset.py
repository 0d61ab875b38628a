import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.manifest import TokenType
from pipeline.data.dataset import TokenDataset, open_dataset
from pipeline.shared.errors import DataError
from tests.support.shards import EOD_ID, random_documents, stream_of, write_split
from tests.unit.pipeline.data.conftest import DOCUMENTS, SEQ_LENGTH

STREAM = stream_of(DOCUMENTS)


@pytest.mark.parametrize("token_type", ["uint16", "int32"])
@pytest.mark.parametrize("seq_length", [1, 7, 16, 100_000])
def test_no_token_is_lost_or_doubled(tmp_path: Path, token_type: TokenType, seq_length: int) -> None:
    write_split(tmp_path, DOCUMENTS, token_type=token_type, member_tokens=33)
    dataset = open_dataset(tmp_path, "train", seq_length=seq_length)
    rows = dataset.rows(range(len(dataset)))
    # neighbouring samples share one token: the last of a row is the first of the next
    parts = [row[: length - 1] for row, length in zip(rows.tokens, rows.lengths, strict=True)]
    last_token = rows.tokens[-1, rows.lengths[-1] - 1]
    assert [*np.concatenate(parts).tolist(), last_token] == STREAM


def test_a_sample_is_the_slice_of_the_stream(dataset: TokenDataset) -> None:
    for index in (0, 3, len(dataset) - 2):
        rows = dataset.rows([index])
        assert rows.tokens[0].tolist() == STREAM[index * SEQ_LENGTH : index * SEQ_LENGTH + SEQ_LENGTH + 1]


def test_only_the_last_sample_is_short_and_filled_with_end_of_document(dataset: TokenDataset) -> None:
    rows = dataset.rows(range(len(dataset)))
    rest = len(STREAM) - (len(dataset) - 1) * SEQ_LENGTH
    assert 2 <= rest <= SEQ_LENGTH
    assert rows.lengths.tolist() == [SEQ_LENGTH + 1] * (len(dataset) - 1) + [rest]
    assert set(rows.tokens[-1, rest:].tolist()) == {EOD_ID}


def test_a_stream_that_fills_its_samples_exactly_has_no_short_one(tmp_path: Path) -> None:
    write_split(tmp_path, [list(range(1, 33))])
    dataset = open_dataset(tmp_path, "train", seq_length=16)
    assert len(dataset) == 2
    assert dataset.rows([0, 1]).lengths.tolist() == [17, 17]


def test_an_index_of_other_shards_is_not_taken(tmp_path: Path) -> None:
    for seed in (1, 2):
        documents = random_documents(20, seed=seed)
        dataset = open_dataset(write_split(tmp_path, documents), "train", seq_length=5)
        assert len(dataset.stream) == len(stream_of(documents))
        assert dataset.rows([1]).tokens[0].tolist() == stream_of(documents)[5:11]


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_a_damaged_shard_is_refused(tmp_path: Path, damage: str) -> None:
    write_split(tmp_path / "a", DOCUMENTS)
    write_split(tmp_path / "b", random_documents(50, seed=9))
    path = tmp_path / "a" / "train-000001.tar"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        shutil.copy(tmp_path / "b" / path.name, path)
    with pytest.raises(DataError, match=r"train-000001\.tar"):
        open_dataset(tmp_path / "a", "train", seq_length=8)


def test_a_split_without_text_to_predict_is_refused(tmp_path: Path) -> None:
    write_split(tmp_path, [[]])
    with pytest.raises(DataError, match=r"'train' .*1"):
        open_dataset(tmp_path, "train", seq_length=8)
    with pytest.raises(DataError, match=r"train.*'heldout'"):
        open_dataset(tmp_path, "heldout", seq_length=8)
