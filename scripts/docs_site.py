"""Hooks of mkdocs: README.md is the home page, and links to files of the sources become plain text."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_ROOT = Path(__file__).resolve().parents[1]
# The site has no copy of the sources: `[who may import whom](../CONTRIBUTING.md)`.
_SOURCE_LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./|(?=[A-Z]))[^)#:]+(?:#[^)]*)?\)")
_PAGE_LINK = re.compile(r"\]\(docs/")


def on_files(files: Files, *, config: Any) -> Files:
    """Add README.md as the home page."""
    text = (_ROOT / "README.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "index.md", content=_PAGE_LINK.sub("](", text)))
    return files


def on_page_markdown(markdown: str, **_context: Any) -> str:
    """Replace links that leave the folder of pages by their text."""
    return _SOURCE_LINK.sub(r"\1", markdown)
