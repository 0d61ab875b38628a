"""What a file is, by its name and its content; what is skipped, refused or lost, and is never silent."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from data_prep.inputs.documents import TextFiles
from data_prep.inputs.finding import survey_files
from data_prep.inputs.ranges import full_range
from data_prep.inputs.records import BadRecord, Document, Loss, read_records
from data_prep.manifest import ReadSettings
from pipeline.shared.errors import DataError
from tests.unit.data_prep.inputs.test_records import bad, json_lines, losses, parquet, read, tar, texts

MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize(
    "name", ["a.jsonl.bz2", "a.csv", "a.zip", "a.jsonl.lz4", "part-00000", "a.parquet.gz", "README.md"]
)
def test_a_named_file_of_an_unknown_kind_is_refused_and_one_in_a_folder_is_listed(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"text")
    (tmp_path / "a.txt").write_bytes(b"text")
    for place in (str(tmp_path / name), f"{tmp_path}/{name[:-1]}?"):
        with pytest.raises(DataError, match=r"\.jsonl"):
            survey_files(TextFiles(inputs=(place,)))
    found = survey_files(TextFiles(inputs=(str(tmp_path),)))
    assert [file.path for file in found.files] == ["a.txt"]
    assert [file.path for file in found.skipped] == [name]
    declared = survey_files(TextFiles(inputs=(str(tmp_path / name),), suffixes=(name[-2:],)))
    assert [file.path for file in declared.files] == [name]


def test_json_that_describes_data_is_listed_and_json_with_the_field_is_read(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"license": "mit"}, indent=1))
    (tmp_path / "one.json").write_text('{"text": "one"}')
    (tmp_path / "two.json").write_bytes(json_lines(["a", "b"]))
    found = survey_files(TextFiles(inputs=(str(tmp_path),)))
    assert [file.path for file in found.files] == ["one.json", "two.json"]
    assert [file.path for file in found.skipped] == ["dataset_info.json"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", gzip.compress(json_lines(["a"]), mtime=0)),
        ("a.txt", zstd.compress(b"text" * 100)),
        ("a.txt", parquet(["a"])),
        ("a.jsonl", tar({"a.txt": b"text"})),
        ("a.txt", "text".encode("utf-16")),
        ("a.jsonl", "text".encode("utf-16")),
        ("a.txt", json_lines(["a", "b"])),
        ("a.txt.gz", gzip.compress(json_lines(["a", "b"]), mtime=0)),
        ("a.parquet", json_lines(["a"])),
        ("a.tar", json_lines(["a"])),
        ("a.json", json.dumps([{"text": "a"}, {"text": "b"}]).encode()),
        ("a.json", json.dumps({"text": "a", "id": 1}, indent=1).encode()),
        ("a.jsonl", b"<html>\n<body>\n</body></html>\n"),
        ("a.jsonl", b'{"content": "a"}\n' * 20),
        ("a.jsonl", b'{"text": {"en": "a"}}\n' * 20),
    ],
)
def test_a_file_whose_content_is_not_what_its_name_says_is_lost(
    tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    records = read(tmp_path / name)
    assert [line for line, _ in losses(records)] == [None]
    assert len(records) == 1


@pytest.mark.parametrize("content", [b"PK\x03\x04 letters", b"BZh is a word", b"{not: json}", b'["a"]\n'])
def test_texts_that_begin_like_other_kinds_are_texts(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert texts(read(tmp_path / "a.txt")) == [content.decode()]


@pytest.mark.parametrize("pad", ["", " " * (1 << 20)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_byte_order_mark_is_no_part_of_a_file(
    tmp_path: Path, pad: str, pack: Callable[[bytes], bytes]
) -> None:
    end = "" if pack is bytes else ".gz"
    inside = "in\ufeffside"
    for name, content in {
        "a.txt": inside.encode(),
        "a.jsonl": json.dumps({"text": inside, "pad": pad}).encode(),
        "a.tar": tar({"a.txt": MARK + inside.encode()}),
    }.items():
        path = tmp_path / (name + end)
        path.write_bytes(pack(content if name == "a.tar" else MARK + content))
        assert texts(read(path)) == [inside]
    (tmp_path / f"b.txt{end}").write_bytes(pack(MARK + b"one\ntwo"))
    assert texts(read(tmp_path / f"b.txt{end}", lines=True)) == ["one", "two"]


def test_long_numbers_beside_a_text_are_not_asked_for(tmp_path: Path) -> None:
    number = "1" * 5000
    lines = [f'{{"text": "a", "n": {number}}}', f'{{"text": {number}}}', '{"text": "b"}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    records = read(tmp_path / "a.jsonl")
    assert [record.text for record in records if isinstance(record, Document)] == ["a", "b"]
    assert [line for line, _ in bad(records)] == [2]
    long = " " * (1 << 20)
    (tmp_path / "b.jsonl").write_text(f'{{"text": "a", "n": {number}, "pad": "{long}"}}')
    assert texts(read(tmp_path / "b.jsonl")) == ["a"]


@pytest.mark.parametrize("error", [ValueError, OverflowError, MemoryError, RecursionError, KeyError])
def test_any_error_about_one_record_makes_it_a_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail_for_two(content: bytes, field: str) -> tuple[str, ...]:
        if b"two" in content:
            raise error("of a library")
        return (json.loads(content)[field],)

    monkeypatch.setattr("data_prep.inputs.records.json_text", fail_for_two)
    (tmp_path / "a.jsonl").write_bytes(json_lines(["one", "two", "three"]))
    records = read(tmp_path / "a.jsonl")
    assert [record.text for record in records if isinstance(record, Document)] == ["one", "three"]
    assert [line for line, _ in bad(records)] == [2]


def test_records_that_are_too_large_are_bad_ones_and_the_rest_is_read(tmp_path: Path) -> None:
    contents = {
        "a.jsonl": json_lines(["one", "x" * 200, "two"]),
        "a.jsonl.zst": zstd.compress(json_lines(["one", "x" * 200_000, "two"])),
        "a.tar": tar({"1.txt": b"one", "2.txt": b"x" * 200, "3.txt": b"two"}),
        "a.parquet": parquet(["one", "x" * 200, "two"]),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        records = read(tmp_path / name, max_record_bytes=100)
        assert [record.text for record in records if isinstance(record, Document)] == ["one", "two"], name
        assert [line for line, _ in bad(records)] == [2], name
    for name, content in {"a.txt": b"x" * 200, "a.txt.gz": gzip.compress(b"x" * 200, mtime=0)}.items():
        (tmp_path / name).write_bytes(content)
        assert len(bad(read(tmp_path / name, max_record_bytes=100))) == 1
        assert len(texts(read(tmp_path / name, max_record_bytes=200))) == 1


def test_positions_behind_a_line_that_is_too_long_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(["x" * 500, "two"]))
    (file,) = survey_files(TextFiles(inputs=(str(tmp_path),))).files
    short, whole = (
        [
            record.position
            for record in read_records(full_range(file), ReadSettings(max_record_bytes=size))
            if isinstance(record, Document)
        ]
        for size in (100, 1000)
    )
    assert short == whole[1:]


def test_a_member_with_a_damaged_header_is_a_bad_record(tmp_path: Path) -> None:
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("first.txt", "second.txt"):
            member = tarfile.TarInfo(name)
            member.size = 4
            if name == "first.txt":
                member.pax_headers = {
                    "GNU.sparse.major": "0",
                    "GNU.sparse.minor": "1",
                    "GNU.sparse.map": "0,x",
                }
            archive.addfile(member, io.BytesIO(b"text"))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    records = read(tmp_path / "a.tar")
    assert [type(record) for record in records] == [BadRecord, Document]


def test_a_tar_with_an_endless_header_is_lost(tmp_path: Path) -> None:
    import tarfile

    header = tarfile.TarInfo("name")
    header.type = tarfile.XHDTYPE
    header.size = 1 << 32
    content = header.tobuf() + b"\0" * (4 << 20)
    (tmp_path / "a.tar.zst").write_bytes(zstd.compress(content))
    assert len(losses(read(tmp_path / "a.tar.zst"))) == 1


def test_linked_folders_are_read_once_and_loops_end(tmp_path: Path) -> None:
    for name in ("corpus/z/1.txt", "store/2.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    corpus = tmp_path / "corpus"
    (corpus / "a_link").symlink_to("z")
    (corpus / "linked").symlink_to(tmp_path / "store")
    (corpus / "up").symlink_to(".")
    (corpus / "self").symlink_to("self")
    (corpus / "nothing.txt").symlink_to("absent")
    (corpus / "z" / "back").symlink_to(corpus)
    found = survey_files(TextFiles(inputs=(str(corpus),)))
    assert [file.path for file in found.files] == ["linked/2.txt", "z/1.txt"]
    assert {file.path for file in found.skipped} == {"nothing.txt", "self"}
    for pattern in ("corpus/**/*.txt", "corpus/**", "cor*", "corpus/*"):
        globbed = survey_files(TextFiles(inputs=(f"{tmp_path}/{pattern}",)))
        assert sorted(os.path.basename(file.path) for file in globbed.files) == ["1.txt", "2.txt"], pattern  # noqa: PTH119


def test_a_pipe_is_refused_as_an_input_and_listed_in_a_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match=r"pipe\.txt"):
        survey_files(TextFiles(inputs=(str(tmp_path / "pipe.txt"),)))
    found = survey_files(TextFiles(inputs=(str(tmp_path),)))
    assert [file.path for file in found.skipped] == ["pipe.txt"]


def test_the_output_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    for name in ("a.txt", "out/b.txt"):
        (tmp_path / name).write_text("text")
    found = survey_files(TextFiles(inputs=(str(tmp_path),)), output=tmp_path / "out")
    assert [file.path for file in found.files] == ["a.txt"]
    assert [file.path for file in found.skipped] == ["out/"]


def test_a_record_that_damage_ends_is_named(tmp_path: Path) -> None:
    content = gzip.compress(json_lines([f"text {number**5}" for number in range(5000)]))
    (tmp_path / "a.jsonl.gz").write_bytes(content[: len(content) // 2])
    *before, last = read(tmp_path / "a.jsonl.gz")
    assert isinstance(last, Loss)
    assert last.line == len(before) + 1 > 100
