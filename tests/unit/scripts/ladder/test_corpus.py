"""The text of the ladder: distinct pages, compressed or not."""

import gzip
import json
from pathlib import Path

import pytest

from pipeline.shared.errors import DataError
from scripts.ladder.corpus import find_documentation, read_pages, write_pages


@pytest.fixture
def documentation(tmp_path: Path) -> Path:
    folder = tmp_path / "Documentation"
    (folder / "admin").mkdir(parents=True)
    (folder / "admin" / "b.rst.gz").write_bytes(gzip.compress(b"second\n"))
    (folder / "a.txt").write_text("first\n", encoding="utf-8")
    (folder / "copy_of_a.txt").write_text("first\n", encoding="utf-8")
    (folder / "empty.rst").write_text(" \n", encoding="utf-8")
    (folder / "picture.svg").write_text("<svg/>", encoding="utf-8")
    return folder


def test_each_distinct_page_is_read_once_in_the_order_of_names(documentation: Path) -> None:
    assert [(page.name, page.text) for page in read_pages(documentation)] == [
        ("a.txt", "first\n"),
        ("admin/b.rst.gz", "second\n"),
    ]


def test_pages_are_json_lines_which_a_limit_cuts(documentation: Path, tmp_path: Path) -> None:
    output = tmp_path / "text" / "pages.jsonl"

    assert write_pages(documentation, output) == 2
    lines = output.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["first\n", "second\n"]
    assert write_pages(documentation, output, limit=1) == 1


def test_a_folder_without_pages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_pages(tmp_path, tmp_path / "pages.jsonl")
    with pytest.raises(DataError):
        find_documentation(tmp_path / "absent", download_to=tmp_path)
