from pathlib import Path

from pipeline.conversion.model_code import CODE_FILES

PAGE = (Path(__file__).parents[3] / "docs" / "huggingface.md").read_text(encoding="utf-8")


def test_the_page_lists_the_code_that_an_export_ships() -> None:
    assert [name for name in CODE_FILES if f"`{name}`" not in PAGE] == []
