"""Which files a source has, on disks and behind URLs."""

import os
from pathlib import Path

import fsspec
import pytest

from data_prep.inputs.documents import TextFiles, TextFolder, files_fingerprint, python_standard_library
from data_prep.inputs.finding import find_files
from pipeline.shared.errors import DataError
from tests.support.corpus import write_corpus


def names(*inputs: str | Path, **fields: object) -> list[str]:
    source = TextFiles.model_validate({"inputs": [str(place) for place in inputs], **fields})
    return [file.path for file in find_files(source)]


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a.jsonl", "b.jsonl.gz", "deep/c.parquet", "deep/d.txt", "deep/e.bin", "__pycache__/f.txt"):
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path / "corpus"


def test_files_come_sorted_by_relative_path_and_only_with_the_suffix(tmp_path: Path) -> None:
    paths = [file.path for file in find_files(write_corpus(tmp_path))]
    assert paths == sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt"))


def test_skipped_folders_are_not_entered(tmp_path: Path) -> None:
    for folder in ("kept", "kept/__pycache__", "__pycache__"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.txt").write_text("text")
    assert [file.path for file in find_files(TextFolder(root=tmp_path))] == ["kept/a.txt"]


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("text")
    (file,) = find_files(TextFolder(root=tmp_path / "one.txt"))
    assert (file.path, file.location) == ("one.txt", str(tmp_path / "one.txt"))


def test_the_standard_library_is_found_without_installed_packages() -> None:
    paths = [file.path for file in find_files(python_standard_library())]
    assert "json/__init__.py" in paths
    assert not any("site-packages" in path or "__pycache__" in path for path in paths)


def test_a_folder_gives_every_known_kind_under_relative_names(corpus: Path) -> None:
    assert names(corpus) == ["a.jsonl", "b.jsonl.gz", "deep/c.parquet", "deep/d.txt"]
    assert names(corpus, suffixes=[".bin"]) == ["deep/e.bin"]


def test_files_folders_and_globs_mix_and_a_file_named_twice_is_taken_once(corpus: Path) -> None:
    assert names("corpus/*.jsonl*", "corpus/deep/d.txt") == [
        "corpus/a.jsonl",
        "corpus/b.jsonl.gz",
        "corpus/deep/d.txt",
    ]
    assert names("corpus/deep", "corpus/**/*.txt") == [
        "corpus/__pycache__/f.txt",
        "corpus/deep/c.parquet",
        "corpus/deep/d.txt",
    ]


def test_a_file_url_names_the_files_that_the_path_does(corpus: Path) -> None:
    found = find_files(TextFiles(inputs=(f"file://{corpus}",)))
    assert [file.path for file in found] == names(corpus)
    local = find_files(TextFiles(inputs=(str(corpus),)))
    assert [file.size_bytes for file in found] == [file.size_bytes for file in local]
    os.utime(corpus / "a.jsonl", (1, 1))
    again = find_files(TextFiles(inputs=(f"file://{corpus}",)))
    assert files_fingerprint(again) != files_fingerprint(found)


def test_folders_files_and_globs_of_a_url_are_found() -> None:
    system = fsspec.filesystem("memory")
    for name in ("x/a.jsonl", "x/deep/b.txt", "x/deep/c.bin", "x/__pycache__/d.txt"):
        system.pipe_file(f"/finding/{name}", b"text")
    assert names("memory://finding/x") == ["a.jsonl", "deep/b.txt"]
    assert names("memory://finding/x/*.jsonl") == ["memory:///finding/x/a.jsonl"]
    assert names("memory://finding/x/deep/b.txt") == ["memory:///finding/x/deep/b.txt"]
    assert names("memory://finding/x/*") == ["memory:///finding/x/a.jsonl", "memory:///finding/x/deep/b.txt"]


def test_a_missing_source_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text source"):
        find_files(TextFolder(root=tmp_path / "absent"))
    with pytest.raises(DataError, match=r"\.txt"):
        find_files(TextFolder(root=tmp_path))
    for place in (f"{tmp_path}/*.jsonl", "memory://nowhere", "memory://nowhere/*.txt"):
        with pytest.raises(DataError, match="text source"):
            names(place)
    with pytest.raises(DataError, match="fsspec"):
        names("nonsense://bucket/a")


def test_the_fingerprint_sees_names_and_sizes_and_order(tmp_path: Path) -> None:
    files = find_files(write_corpus(tmp_path))
    fingerprint = files_fingerprint(files)
    assert fingerprint == files_fingerprint(find_files(TextFolder(root=tmp_path)))
    assert fingerprint != files_fingerprint(files[::-1])
    assert fingerprint != files_fingerprint(files[:-1])
