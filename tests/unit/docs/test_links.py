"""Every link of README and docs leads to a file, and to a heading in it, that exists."""

import re
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[3]
PAGES = (*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md")))
ELSEWHERE = ("http://", "https://", "mailto:")


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def links(text: str) -> list[str]:
    """Return the targets of links and pictures that are no addresses."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", without_code(text)))
    return [target for target in found if not target.startswith(ELSEWHERE)]


def anchors(text: str) -> set[str]:
    """Return the names that GitHub and mkdocs give to the headings of a page."""
    headings = re.findall(r"^#+ +(.+?) *$", without_code(text), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def broken(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    file = (page.parent / name).resolve() if name else page
    if not file.exists():
        return True
    return bool(anchor) and anchor not in anchors(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [target for target in links(text) if broken(page, target)] == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c\n[x](#a-b-c) [y](#a-b) ![z](z.png) [w](https://a.b) `[v](v.md)`\n")
    assert [target for target in links(page.read_text()) if broken(page, target)] == ["#a-b", "z.png"]


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").replace("!!python/object/apply:", "# ")
    sections = yaml.safe_load(text)["nav"]
    entries = [entry for section in sections for entry in section.values()]
    listed = {
        page
        for entry in entries
        for page in ([entry] if isinstance(entry, str) else [p for one in entry for p in one.values()])
    }
    docs = REPOSITORY / "docs"
    pages = {str(page.relative_to(docs)) for kind in ("*.md", "*.ipynb") for page in docs.rglob(kind)}
    assert listed == pages | {"index.md"}
