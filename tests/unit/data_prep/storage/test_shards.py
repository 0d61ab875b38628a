"""Writing, locating and reading shards, and webdataset's own reader on the same files."""

import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_prep.manifest import TokenType
from data_prep.storage.shard_format import locate_members
from data_prep.storage.shard_reader import document_lengths, iterate_documents, iterate_pieces
from data_prep.storage.shard_writer import ShardWriter, WrittenShard
from pipeline.shared.errors import DataError
from tests.support.shards import EOD_ID, random_documents, stream_of

DOCUMENTS = [*random_documents(20), list(range(1, 100)) * 3]


def write(path: Path, token_type: TokenType = "uint16", member_tokens: int = 64) -> WrittenShard:
    with ShardWriter(path, token_type=token_type, eod_id=EOD_ID, member_tokens=member_tokens) as writer:
        for document in DOCUMENTS:
            writer.add_document(np.array(document, dtype=np.int32))
        return writer.finish()


@pytest.mark.parametrize("token_type", ["uint16", "int32"])
@pytest.mark.parametrize("member_tokens", [1, 64, 10_000])
def test_documents_come_back(tmp_path: Path, token_type: TokenType, member_tokens: int) -> None:
    path = tmp_path / "a.tar"
    written = write(path, token_type, member_tokens)
    read = [document.tolist() for document in iterate_documents(path, EOD_ID)]
    assert read == [[*document, EOD_ID] for document in DOCUMENTS]
    assert document_lengths(path, EOD_ID).tolist() == [len(document) for document in read]
    assert (written.num_documents, written.num_tokens) == (len(DOCUMENTS), len(stream_of(DOCUMENTS)))
    assert written.size_bytes == path.stat().st_size


def test_all_samples_but_the_last_are_full(tmp_path: Path) -> None:
    written = write(tmp_path / "a.tar")
    counts = [member.tokens.count for member in locate_members(tmp_path / "a.tar")]
    assert counts[:-1] == [64] * (written.num_members - 1)
    assert 0 < counts[-1] <= 64


def test_webdatasets_own_pipeline_reads_the_shards(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write(tmp_path / "a.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False).decode())
    tokens = np.concatenate([sample["tokens.npy"] for sample in samples])
    lengths = [length for sample in samples for length in sample["lengths.npy"]]
    assert tokens.dtype == np.uint16
    assert tokens.tolist() == stream_of(DOCUMENTS)
    assert lengths == [len(piece) for piece in iterate_pieces(tmp_path / "a.tar")]


def test_the_bytes_depend_on_the_documents_alone(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.tar"), write(tmp_path / "b.tar")
    assert first == second
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in tar} == {(0, 0, 0, "")}


@pytest.mark.parametrize("part_tokens", [1, 7, 64, 1000])
def test_the_bytes_do_not_depend_on_the_parts_of_a_document(tmp_path: Path, part_tokens: int) -> None:
    expected = write(tmp_path / "whole.tar")
    with ShardWriter(tmp_path / "parts.tar", token_type="uint16", eod_id=EOD_ID, member_tokens=64) as writer:
        for document in DOCUMENTS:
            for start in range(0, len(document), part_tokens):
                writer.add_tokens(np.array(document[start : start + part_tokens], dtype=np.int32))
            writer.end_document()
        assert writer.finish() == expected
    assert (tmp_path / "parts.tar").read_bytes() == (tmp_path / "whole.tar").read_bytes()


def test_a_shard_gets_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="interrupted"):
        write_half(tmp_path / "a.tar")
    assert list(tmp_path.iterdir()) == []


def write_half(path: Path) -> None:
    with ShardWriter(path, token_type="uint16", eod_id=0, member_tokens=4) as writer:
        writer.add_document(np.arange(10, dtype=np.int32))
        assert not path.exists()
        raise RuntimeError("interrupted")


def test_an_empty_shard_has_no_samples(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a.tar", token_type="uint16", eod_id=0, member_tokens=4) as writer:
        assert writer.finish().num_members == 0
    assert locate_members(tmp_path / "a.tar") == []


@pytest.mark.parametrize("keep_bytes", [0, 100, 600, 2000])
def test_a_truncated_shard_is_refused(tmp_path: Path, keep_bytes: int) -> None:
    write(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:keep_bytes])
    with pytest.raises(DataError, match=r"\.tar"):
        locate_members(tmp_path / "a.tar")


def test_a_tar_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no array")
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.add(tmp_path / "text", "text")
    with pytest.raises(DataError, match=r"\.tar"):
        locate_members(tmp_path / "a.tar")
