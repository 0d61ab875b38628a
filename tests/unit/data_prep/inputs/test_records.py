"""The same documents out of every kind of file, and what happens to records that hold none."""

import gzip
import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from backports import zstd

from data_prep.inputs.documents import TextFiles
from data_prep.inputs.finding import find_files
from data_prep.inputs.ranges import full_range
from data_prep.inputs.records import BadRecord, Document, Loss, read_records
from data_prep.manifest import ReadSettings
from pipeline.shared.errors import DataError

TEXTS = ["first", "second text", "", "\u6f22 \U0001f600", "words " * 30_000, "a \u2028 b"]

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts).encode()


def parquet(texts: list[object], **columns: list[object]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, **columns}), buffer, row_group_size=4)
    return buffer.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def read(path: str | Path, **reading: object) -> list[Document | BadRecord | Loss]:
    settings = ReadSettings.model_validate(reading)
    (file,) = find_files(TextFiles(inputs=(str(path),), reading=settings))
    return list(read_records(full_range(file), settings))


def texts(records: list[Document | BadRecord | Loss]) -> list[str]:
    assert not [record for record in records if not isinstance(record, Document)]
    return [record.text for record in records if isinstance(record, Document)]


def bad(records: list[Document | BadRecord | Loss]) -> list[tuple[int | None, str]]:
    return [(record.line, record.reason) for record in records if isinstance(record, BadRecord)]


def losses(records: list[Document | BadRecord | Loss]) -> list[tuple[int | None, str]]:
    return [(record.line, record.reason) for record in records if isinstance(record, Loss)]


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_every_kind_of_file_gives_its_documents(tmp_path: Path, compression: str) -> None:
    members = {f"{i}.txt": text.encode() for i, text in enumerate(TEXTS)} | {"0.json": b"{}"}
    contents = {
        "a.jsonl": json_lines(TEXTS),
        "a.ndjson": json_lines(TEXTS),
        "a.json": json_lines(TEXTS),
        "part-00000-of-00002.JSON": json_lines(TEXTS),
        "a.tar": tar(members),
        "one.txt": TEXTS[4].encode(),
    }
    for name, content in contents.items():
        path = tmp_path / (name + compression)
        path.write_bytes(COMPRESSORS[compression](content))
        assert texts(read(path)) == ([TEXTS[4]] if name == "one.txt" else TEXTS)


def test_parquet_gives_the_column_of_the_field(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(parquet([*TEXTS], other=[*"abcdef"]))
    assert texts(read(tmp_path / "a.parquet")) == TEXTS
    assert texts(read(tmp_path / "a.parquet", text_field="other")) == [*"abcdef"]


def test_lines_of_plain_text_are_documents_when_asked(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("one\r\n\ntwo \u2028 \xe9\nlast".encode())
    assert texts(read(tmp_path / "a.txt", lines=True)) == ["one", "", "two \u2028 \xe9", "last"]
    assert len(texts(read(tmp_path / "a.txt"))) == 1


@pytest.mark.parametrize("url", ["memory://records/{name}", "file://{folder}/{name}"])
@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet", "a.tar"])
def test_urls_are_read_as_files_are(tmp_path: Path, url: str, name: str) -> None:
    contents = {
        "a.jsonl.zst": zstd.compress(json_lines(TEXTS)),
        "a.parquet": parquet([*TEXTS]),
        "a.tar": tar({f"{i}.txt": text.encode() for i, text in enumerate(TEXTS)}),
    }
    place = url.format(folder=tmp_path, name=name)
    with fsspec.open(place, "wb") as file:
        file.write(contents[name])
    assert texts(read(place)) == TEXTS


def test_records_are_numbered_and_only_the_wanted_ones_are_parsed(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "1"}\n\nbroken\n{"text": "4"}\n')
    (file,) = find_files(TextFiles(inputs=(str(tmp_path),)))
    records = list(read_records(full_range(file), ReadSettings(), wanted=lambda position: position != 15))
    assert records == [Document(position=0, parts=("1",)), Document(position=22, parts=("4",))]


def test_each_bad_json_record_is_named_with_its_reason(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b"{broken",
        b'{"other": 1}',
        b'{"text": 7}',
        b"[1]",
        b'{"text": "caf\xe9"}',
        b'{"text": "\\ud800"}',
        b"[" * 100_000,
        b'{"text": "good"}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    records = read(tmp_path / "a.jsonl")
    assert [isinstance(record, Document) for record in records] == [True, *[False] * 7, True]
    reasons = dict(bad(records))
    assert [*reasons] == [2, 3, 4, 5, 6, 7, 8]
    assert reasons[2].startswith("not JSON: ")
    assert reasons[3] == "no field 'text', only ['other']"
    assert reasons[4] == "field 'text' must be text, but is 7"
    assert reasons[5] == "a record must be a JSON object, but is [1]"
    assert reasons[6].startswith("not UTF-8 at byte 13")
    assert reasons[7] == "half a character at position 0 of field 'text'"
    assert reasons[8].startswith("not JSON")


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_a_truncated_archive_has_the_records_before_its_end(tmp_path: Path, compression: str) -> None:
    many = [f"text {number} {number**7:x}" for number in range(12_000)]
    content = COMPRESSORS[compression](json_lines(many))
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(content[: len(content) * 3 // 4])
    *before, last = read(path)
    assert 0 < len(before) < len(many)
    assert texts(before) == many[: len(before)]
    assert isinstance(last, Loss)
    assert last.line == len(before) + 1
    path.write_bytes(b"no archive at all, but long enough to look at")
    assert [line for line, _ in losses(read(path))] == [None]


@pytest.mark.parametrize("keep_bytes", [512, 700, 1024, 1024 + 100, 2048])
def test_a_truncated_tar_is_detected_at_any_length(tmp_path: Path, keep_bytes: int) -> None:
    content = tar({"a.txt": b"first", "b.txt": b"second"})
    (tmp_path / "a.tar").write_bytes(content[:keep_bytes])
    *before, last = read(tmp_path / "a.tar")
    assert texts(before) == ["first", "second"][: (keep_bytes + 511) // 1024]
    assert isinstance(last, Loss)


@pytest.mark.parametrize("members", [{}, {"a.jpg": b"picture", "b.jpg": b"picture"}])
def test_a_tar_without_text_members_is_lost(tmp_path: Path, members: dict[str, bytes]) -> None:
    (tmp_path / "a.tar").write_bytes(tar(members))
    ((line, reason),) = losses(read(tmp_path / "a.tar"))
    assert line is None
    assert ("a.jpg" in reason) == bool(members)


def test_parquet_rows_without_text_are_bad_records_and_damaged_files_are_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(parquet(["a", None, "c"]))
    assert bad(read(path)) == [(2, "field 'text' must be text, but is None")]
    path.write_bytes(parquet([1, 2]))
    assert losses(read(path)) == [(None, "field 'text' must be text, but is 1")]
    assert losses(read(path, text_field="absent")) == [(None, "no column 'absent', only ['text']")]
    path.write_bytes(parquet([*TEXTS])[:-20])
    assert [line for line, _ in losses(read(path))] == [None]


def test_a_file_that_changed_or_went_since_it_was_listed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    (file,) = find_files(TextFiles(inputs=(str(tmp_path),)))
    (tmp_path / "a.txt").write_text("longer than before")
    with pytest.raises(DataError, match=r"\d+ bytes"):
        list(read_records(full_range(file), ReadSettings()))
    (tmp_path / "a.txt").unlink()
    with pytest.raises(DataError, match="input files"):
        list(read_records(full_range(file), ReadSettings()))
