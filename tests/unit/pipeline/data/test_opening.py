"""From data settings to samples, for one path and for a blend."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from data_prep.conversion import convert
from pipeline.config.schema import DataConfig
from pipeline.data.batches import BatchLayout, PackingOptions, TrainingBatches
from pipeline.data.dataset import TokenDataset, Vocabulary, open_dataset
from pipeline.data.opening import (
    DataFormat,
    Reading,
    SplitPlace,
    open_heldout,
    open_place,
    open_training,
    training_order,
)
from pipeline.metrics.data_hash import combine_digests, row_digests
from pipeline.shared.errors import DataError
from tests.support.shards import EOD_ID, VOCAB_SIZE, random_documents, stream_of, write_split

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


DOCUMENTS = random_documents(60)
STREAM = stream_of(DOCUMENTS)
SEQ_LENGTH = 16


def open_format(
    path: Path,
    kind: DataFormat,
    *,
    split: str = "train",
    stands_for_split: bool = True,
    vocab_size: int = VOCAB_SIZE,
    eod_id: int = EOD_ID,
) -> TokenDataset:
    place = SplitPlace(
        path=path,
        split=split,
        format=kind,
        stands_for_split=stands_for_split,
        token_type="uint16",
        vocabulary=Vocabulary(size=vocab_size, eod_id=eod_id),
    )
    return open_place(place, seq_length=SEQ_LENGTH)


def write_pair(prefix: Path, documents: Sequence[Sequence[int]], *, dtype: type = np.uint16) -> Path:
    """Write documents with Megatron's own builder, each in two sequences where it is long enough."""
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        tokens = [*document, EOD_ID]
        half = len(tokens) // 2
        builder.add_document(np.array(tokens), [half, len(tokens) - half] if half else [1])
    builder.finalize(f"{prefix}.idx")
    return prefix


def write_rows(folder: Path, *, num_parts: int = 3) -> tuple[Path, list[list[int]]]:
    """Write rows of SEQ_LENGTH + 1 tokens; the parts are cut without regard for the rows."""
    folder.mkdir(parents=True)
    row_tokens = SEQ_LENGTH + 1
    rows = [STREAM[start : start + row_tokens] for start in range(0, 20 * row_tokens, row_tokens)]
    content = np.array(rows, dtype="<u2").reshape(-1)
    for number, part in enumerate(np.array_split(content, num_parts)):
        part.tofile(folder / f"document-{number:05d}-of-{num_parts - 1:05d}.bin")
    return folder, rows


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_a_megatron_pair_gives_the_samples_of_the_shards(tmp_path: Path, dtype: type) -> None:
    shards = open_dataset(write_split(tmp_path / "shards", DOCUMENTS), "train", seq_length=SEQ_LENGTH)
    pair = open_format(write_pair(tmp_path / "text_document", DOCUMENTS, dtype=dtype), "megatron")
    assert len(pair) == len(shards)
    for index in range(len(shards)):
        expected, found = shards.rows([index]), pair.rows([index])
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.lengths.tolist() == expected.lengths.tolist()
    assert np.concatenate(list(pair.stream.runs())).tolist() == STREAM


def test_rows_come_as_they_lie_in_the_parts(tmp_path: Path) -> None:
    folder, expected = write_rows(tmp_path / "rows")
    dataset = open_format(folder, "rows")
    assert len(dataset) == len(expected)
    rows = dataset.rows(range(len(expected)))
    assert rows.tokens.tolist() == expected
    assert set(rows.lengths.tolist()) == {SEQ_LENGTH + 1}
    assert dataset.rows([13]).tokens.tolist() == [expected[13]]


def test_one_part_is_enough(tmp_path: Path) -> None:
    folder, expected = write_rows(tmp_path / "rows", num_parts=1)
    (part,) = folder.iterdir()
    assert open_format(part, "rows").rows([2]).tokens.tolist() == [expected[2]]


def test_a_folder_may_hold_a_pair_or_parts_for_each_split(tmp_path: Path) -> None:
    write_pair(tmp_path / "train", DOCUMENTS)
    write_pair(tmp_path / "heldout", [[7, 8, 9]])
    write_rows(tmp_path / "heldout")
    pair = open_format(tmp_path, "megatron", split="heldout", stands_for_split=False)
    assert pair.rows([0]).tokens[0, :4].tolist() == [7, 8, 9, EOD_ID]
    rows = open_format(tmp_path, "rows", split="heldout", stands_for_split=False)
    assert rows.rows([0]).tokens[0].tolist() == STREAM[: SEQ_LENGTH + 1]


def test_what_is_trained_on_is_never_taken_for_another_split(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "text_document", DOCUMENTS)
    folder, _ = write_rows(tmp_path / "rows")
    places: tuple[tuple[Path, DataFormat], ...] = ((prefix, "megatron"), (folder, "rows"))
    for path, kind in places:
        with pytest.raises(DataError, match=r"'heldout' must lie apart .*give data\.heldout_path"):
            open_format(path, kind, split="heldout", stands_for_split=False)


@pytest.mark.parametrize("kind", ["megatron", "rows"])
def test_a_path_without_data_is_refused(tmp_path: Path, kind: DataFormat) -> None:
    with pytest.raises(DataError, match=r"check data\.path and data\.format"):
        open_format(tmp_path, kind)


def test_a_prepared_pair_is_not_taken_for_shards(tmp_path: Path) -> None:
    write_split(tmp_path / "shards", DOCUMENTS)
    convert(tmp_path / "shards", tmp_path / "pairs", stored_as="megatron")
    pair = open_format(tmp_path / "pairs", "megatron")
    shards = open_dataset(tmp_path / "shards", "train", seq_length=SEQ_LENGTH)
    assert np.array_equal(np.concatenate([*pair.stream.runs()]), np.concatenate([*shards.stream.runs()]))
    with pytest.raises(DataError, match=f"set data.format=megatron and data.eod_id={EOD_ID}"):
        open_dataset(tmp_path / "pairs", "train", seq_length=SEQ_LENGTH)


@pytest.mark.parametrize("damage", ["bin cut", "bin longer", "bin empty", "idx cut", "idx other"])
def test_a_damaged_pair_is_refused(tmp_path: Path, damage: str) -> None:
    prefix = write_pair(tmp_path / "text", DOCUMENTS)
    name, change = damage.split()
    path = tmp_path / f"text.{name}"
    content = path.read_bytes()
    changed = {"cut": content[:-20], "longer": content + b"12", "empty": b"", "other": b"x" * len(content)}
    path.write_bytes(changed[change])
    with pytest.raises(DataError, match=r"text\.bin (and \.idx )?must"):
        open_format(prefix, "megatron")


def test_documents_that_end_otherwise_are_refused(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "text", DOCUMENTS)
    with pytest.raises(DataError, match=r"must end with data\.eod_id \(5\), but document 0 ends with 0"):
        open_format(prefix, "megatron", eod_id=5)


def test_rows_of_another_length_and_broken_tokens_are_refused(tmp_path: Path) -> None:
    folder, _ = write_rows(tmp_path / "rows")
    last = sorted(folder.iterdir())[-1]
    content = last.read_bytes()
    last.write_bytes(content[:-4])
    with pytest.raises(DataError, match=r"rows of training\.seq_length \+ 1 = 17 tokens.*338 tokens, 15 too"):
        open_format(folder, "rows")
    last.write_bytes(content[:-1])
    with pytest.raises(DataError, match="must hold tokens of 2 bytes"):
        open_format(folder, "rows")


def test_an_end_of_document_that_cannot_be_stored_is_refused(tmp_path: Path) -> None:
    folder, _ = write_rows(tmp_path / "rows")
    with pytest.raises(DataError, match=r"data\.eod_id must be a token .* are uint16, but is 70000"):
        open_format(folder, "rows", vocab_size=80_000, eod_id=70_000)


def test_a_token_beyond_the_vocabulary_is_refused_where_it_is_read(tmp_path: Path) -> None:
    dataset = open_format(write_pair(tmp_path / "text", [[1, 2, 3], [90]]), "megatron", vocab_size=50)
    with pytest.raises(DataError, match=r"must be in 0\.\.49, but sample 0 has ids 0\.\.90"):
        dataset.rows([-1, 0])
