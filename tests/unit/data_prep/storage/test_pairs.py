"""Megatron pairs against Megatron's own reader, and their way from text, from shards and back."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from data_prep.conversion import convert
from data_prep.inputs.documents import TextFolder
from data_prep.inspection import inspect_shards
from data_prep.manifest import MANIFEST_NAME, ShardManifest, TokenType, load_manifest
from data_prep.pair_preparation import prepare_pairs
from data_prep.plan import split_of
from data_prep.preparation import PARTS_FOLDER, execute_here
from data_prep.progress import PrepareProgress
from data_prep.run import prepare
from data_prep.storage.shard_reader import iterate_documents
from pipeline.data.megatron_stream import open_pair
from pipeline.shared.errors import DataError
from tests.support.corpus import SETTINGS, build_request
from tests.support.shards import EOD_ID, random_documents, write_split
from tests.unit.data_prep.conftest import Prepared
from tests.unit.data_prep.test_preparation import CountingExecutor, folder_bytes


def in_megatron(folder: Path, split: str) -> list[list[int]]:
    """Documents as Megatron finds them."""
    dataset = IndexedDataset(str(folder / split))
    ends = dataset.document_indices.tolist()
    assert ends == [*range(len(dataset) + 1)]
    return [dataset[number].tolist() for number in range(len(dataset))]


def in_shards(folder: Path, manifest: ShardManifest, split: str) -> list[list[int]]:
    return [
        document.tolist()
        for entry in manifest.split_shards(split)
        for document in iterate_documents(folder / entry.name, manifest.header.tokenizer.eod_id)
    ]


def prepare_here(prepared: Prepared, output: Path, **changes: object) -> ShardManifest:
    return prepare(
        build_request(prepared.source, prepared.tokenizer, output, stored_as="megatron", **changes)
    )


@pytest.fixture(scope="module")
def pairs(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    prepare_here(prepared, folder)
    return folder


def test_megatron_reads_the_documents_that_the_shards_hold(prepared: Prepared, pairs: Path) -> None:
    for split in ("train", "heldout"):
        documents = in_megatron(pairs, split)
        assert documents == in_shards(prepared.folder, prepared.manifest, split)
        assert len(documents) > 4


def test_training_reads_the_pairs_that_preparation_writes(prepared: Prepared, pairs: Path) -> None:
    stream = open_pair(pairs / "train", eod_id=prepared.manifest.header.tokenizer.eod_id)
    tokens = np.concatenate([*stream.pieces(0, len(stream))])
    assert tokens.tolist() == [token for document in in_megatron(pairs, "train") for token in document]


def test_a_folder_of_pairs_holds_nothing_else_that_is_large(pairs: Path) -> None:
    names = {f"{split}{suffix}" for split in ("train", "heldout") for suffix in (".bin", ".idx")}
    others = {MANIFEST_NAME, "tokenizer.model", "rejected.jsonl", "skipped_files.jsonl"}
    assert {path.name for path in pairs.iterdir()} == names | others


@pytest.mark.parametrize("token_type", ["uint16", "int32"])
def test_the_bytes_are_those_of_megatrons_own_writer(tmp_path: Path, token_type: TokenType) -> None:
    documents = random_documents(50)
    write_split(tmp_path / "shards", documents, token_type=token_type)
    convert(tmp_path / "shards", tmp_path / "pairs", stored_as="megatron")
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.dtype(token_type).type)
    for document in documents:
        builder.add_document(np.array([*document, EOD_ID]), [len(document) + 1])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        ours = (tmp_path / f"pairs/train{suffix}").read_bytes()
        assert ours == (tmp_path / f"theirs{suffix}").read_bytes()


def test_shards_come_back_to_the_byte(prepared: Prepared, pairs: Path, tmp_path: Path) -> None:
    converted = convert(prepared.folder, tmp_path / "pairs", stored_as="megatron")
    back = convert(tmp_path / "pairs", tmp_path / "back", stored_as="webdataset", num_threads=1)
    assert back == prepared.manifest
    expected = folder_bytes(prepared.folder)
    assert folder_bytes(tmp_path / "back") == expected
    again = convert(tmp_path / "back", tmp_path / "again", stored_as="megatron", num_threads=3)
    assert again == converted == load_manifest(pairs)
    assert folder_bytes(tmp_path / "again") == folder_bytes(tmp_path / "pairs")


def test_a_damaged_source_is_not_converted(prepared: Prepared, pairs: Path, tmp_path: Path) -> None:
    damages = [
        (prepared.folder, "train-000001.tar", 3000, "megatron"),
        (pairs, "train.bin", 1000, "webdataset"),
        (pairs, "train.idx", 50, "webdataset"),
    ]
    for number, (folder, name, place, to) in enumerate(damages):
        copy = shutil.copytree(folder, tmp_path / f"copy{number}")
        content = bytearray((copy / name).read_bytes())
        content[place] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(DataError, match="sha256"):
            convert(copy, tmp_path / "output", stored_as=to)  # type: ignore[arg-type]
        assert not [path for path in tmp_path.iterdir() if "output" in path.name]


def test_a_conversion_writes_only_into_an_empty_folder(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "notes").write_text("the user's own")
    with pytest.raises(DataError, match=re.escape(str(tmp_path / "output"))):
        convert(prepared.folder, tmp_path / "output", stored_as="megatron")
    assert [path.name for path in (tmp_path / "output").iterdir()] == ["notes"]
    with pytest.raises(DataError, match="webdataset"):
        convert(prepared.folder, tmp_path / "other", stored_as="webdataset")
    (tmp_path / "output" / "notes").unlink()
    convert(prepared.folder, tmp_path / "output", stored_as="megatron")


def test_an_inspection_shows_the_same_of_either_format(prepared: Prepared, pairs: Path) -> None:
    shards, found = inspect_shards(prepared.folder, verify=True), inspect_shards(pairs, verify=True)
    assert found.problems == shards.problems == ()
    assert found.lengths == shards.lengths
    assert [sample.text for sample in found.samples] == [sample.text for sample in shards.samples]


def test_verification_finds_damage_of_pairs(pairs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(pairs, tmp_path / "copy")
    content = bytearray((copy / "train.bin").read_bytes())
    content[-1] ^= 1
    (copy / "train.bin").write_bytes(content)
    (copy / "heldout.idx").write_bytes(b"cut")
    problems = inspect_shards(copy, verify=True).problems
    assert problems is not None
    last = load_manifest(copy).split_shards("train")[-1].name
    heldout = [entry.name for entry in load_manifest(copy).split_shards("heldout")]
    assert [problem.shard for problem in problems] == ["heldout.idx", last, *heldout]


@pytest.mark.parametrize("die_after", [0, 3])
def test_an_interrupted_preparation_of_pairs_resumes(
    prepared: Prepared, pairs: Path, tmp_path: Path, die_after: int
) -> None:
    request = build_request(prepared.source, prepared.tokenizer, tmp_path, stored_as="megatron")
    with pytest.raises(KeyboardInterrupt):
        prepare_pairs(request, CountingExecutor(die_after=die_after), PrepareProgress())
    assert (tmp_path / PARTS_FOLDER).exists()
    again = CountingExecutor()
    prepare_pairs(request, again, PrepareProgress())
    assert len(again.made) == len(prepared.manifest.shards) - die_after
    assert folder_bytes(tmp_path) == folder_bytes(pairs)


def test_existing_pairs_are_kept_and_truncated_ones_are_made_again(
    prepared: Prepared, pairs: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(pairs, tmp_path / "copy")
    request = build_request(prepared.source, prepared.tokenizer, copy, stored_as="megatron")
    executor = CountingExecutor()
    assert prepare_pairs(request, executor, PrepareProgress()) == load_manifest(pairs)
    assert executor.made == []
    (copy / "train.bin").write_bytes(b"cut")
    (copy / ".train.bin.tmp-123abc").write_bytes(b"of a killed run")
    prepare_pairs(request, execute_here, PrepareProgress())
    assert folder_bytes(copy) == folder_bytes(pairs)


def test_another_format_or_setting_is_refused_and_overwritten_when_asked(
    prepared: Prepared, pairs: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(prepared.folder, tmp_path / "copy")
    with pytest.raises(DataError, match="stored_as was webdataset and is megatron"):
        prepare_here(prepared, copy)
    prepare_here(prepared, copy, overwrite=True)
    assert folder_bytes(copy) == folder_bytes(pairs)
    small = SETTINGS.model_copy(update={"heldout_fraction": 0.1})
    with pytest.raises(DataError, match=r"settings.heldout_fraction was 0.3 and is 0.1"):
        prepare_here(prepared, copy, settings=small)
    with pytest.raises(DataError, match="stored_as was megatron and is webdataset"):
        prepare(build_request(prepared.source, prepared.tokenizer, copy))
    prepare(build_request(prepared.source, prepared.tokenizer, copy, overwrite=True))
    assert folder_bytes(copy) == folder_bytes(prepared.folder)


def test_a_split_of_which_nothing_can_be_read_makes_an_empty_pair_and_an_empty_shard(
    prepared: Prepared, tmp_path: Path
) -> None:
    (tmp_path / "text").mkdir()
    names = {split_of(name, 0.3): name for name in ("a.txt", "b.txt", "c.txt", "d.txt", "e.txt", "f.txt")}
    (tmp_path / "text" / names["train"]).write_bytes(b"\xff")
    (tmp_path / "text" / names["heldout"]).write_bytes(b"text")
    prepare(build_request(TextFolder(root=tmp_path / "text"), prepared.tokenizer, tmp_path / "shards"))
    manifest = convert(tmp_path / "shards", tmp_path / "pairs", stored_as="megatron")
    assert manifest.num_tokens("train") == 0
    assert (tmp_path / "pairs" / "train.bin").read_bytes() == b""
    assert inspect_shards(tmp_path / "pairs", verify=True).problems == ()
    convert(tmp_path / "pairs", tmp_path / "back", stored_as="webdataset")
    for name in ("train-000000.tar", MANIFEST_NAME):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "shards" / name).read_bytes()
