from pathlib import Path

import pytest

from data_prep.documents import (
    TextFolder,
    files_fingerprint,
    find_files,
    python_standard_library,
    read_document,
)
from data_prep.errors import DataError
from tests.support.corpus import write_corpus


def test_files_come_sorted_by_relative_path_and_only_with_the_suffix(tmp_path: Path) -> None:
    source = write_corpus(tmp_path)
    paths = [file.path for file in find_files(source)]
    assert paths == sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt"))


def test_skipped_folders_are_not_entered(tmp_path: Path) -> None:
    for folder in ("kept", "kept/__pycache__", "__pycache__"):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "a.txt").write_text("text")
    assert [file.path for file in find_files(TextFolder(root=tmp_path))] == ["kept/a.txt"]


def test_a_single_file_is_a_source(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("text")
    source = TextFolder(root=tmp_path / "one.txt")
    (file,) = find_files(source)
    assert (file.path, read_document(source.root, file)) == ("one.txt", "text")


def test_the_standard_library_is_found_without_installed_packages() -> None:
    paths = [file.path for file in find_files(python_standard_library())]
    assert "json/__init__.py" in paths
    assert not any("site-packages" in path or "__pycache__" in path for path in paths)


def test_a_missing_source_and_an_empty_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must exist"):
        find_files(TextFolder(root=tmp_path / "absent"))
    with pytest.raises(DataError, match=r"must hold files ending in \.txt"):
        find_files(TextFolder(root=tmp_path))


def test_a_file_that_changed_since_it_was_listed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("short")
    (file,) = find_files(TextFolder(root=tmp_path))
    (tmp_path / "a.txt").write_text("longer than before")
    with pytest.raises(DataError, match="must not change"):
        read_document(tmp_path, file)


def test_the_fingerprint_sees_names_and_sizes_and_order(tmp_path: Path) -> None:
    files = find_files(write_corpus(tmp_path))
    fingerprint = files_fingerprint(files)
    assert fingerprint == files_fingerprint(find_files(TextFolder(root=tmp_path)))
    assert fingerprint != files_fingerprint(files[::-1])
    assert fingerprint != files_fingerprint(files[:-1])
