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


def test_marks_long_numbers_and_unusual_breaks_cost_no_prompt(tmp_path: Path) -> None:
    plain, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_bytes("\ufeffold clock\r\nnew\u2028line\n".encode())
    lines.write_bytes(f'\ufeff{{"prompt": "old clock", "id": {"7" * 5000}}}\n'.encode())

    assert read_prompts_file(plain) == ["old clock", "new\u2028line"]
    assert read_prompts_file(lines) == ["old clock"]


def test_a_prompt_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("[" * 100_000)

    with pytest.raises(DataError, match=r"prompts\.jsonl:1"):
        read_prompts_file(lines)
