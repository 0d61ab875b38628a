"""Prompts from a file."""

from pathlib import Path

import pytest

from pipeline.generation.files import read_prompts_file
from pipeline.shared.errors import DataError


def test_every_line_with_text_is_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text('import os\n\n  {"prompt": 1}\n', encoding="utf-8")

    assert read_prompts_file(file) == ["import os", '  {"prompt": 1}']


def test_json_lines_have_the_prompt_under_its_name(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a\\nb", "id": 3}\n\n{"prompt": "\\u00e9"}\n', encoding="utf-8")

    assert read_prompts_file(file) == ["a\nb", "\u00e9"]


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("", "prompts.jsonl"),
        ('{"prompt": "a"}\nnot json\n', "prompts.jsonl:2"),
        ('\n{"text": "a"}\n', "prompts.jsonl:2"),
        ('{"prompt": ""}\n', "prompts.jsonl:1"),
        ("[1]\n", "prompts.jsonl:1"),
    ],
)
def test_a_line_without_a_prompt_is_refused_with_its_number(tmp_path: Path, content: str, place: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content, encoding="utf-8")

    with pytest.raises(DataError, match=place):
        read_prompts_file(file)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.txt"):
        read_prompts_file(tmp_path / "absent.txt")
