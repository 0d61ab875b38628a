"""The command lines in the code blocks of README and docs, and what those need that are not run."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
# The marks: behind a line (`# needs a cluster`), or before its block (`<!-- needs: a cluster -->`).
NEEDS = ("a cluster", "a download", "a task of yours", "an extra", "GPUs")
# What a reader replaces: `RUN`, `[--rank R | ...]`, `...`.
PLACEHOLDER = re.compile(r"\.\.\.| \[| \| | [A-Z]+(?:\.yaml)?(?: |$)")

_BLOCK = re.compile(r"(?:<!-- needs: ([^>]+?) -->\n\s*)?```[^\n]*\n(.*?)```", re.DOTALL)
_MARK = re.compile(r"  # needs ([^#]+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentedLine:
    """A command line of a page.

    Attributes:
        text: without the prompt, lines joined that end in a backslash.
        needs: what it is marked with; None: it is run.
        shows_output: whether what it prints follows.
    """

    text: str
    needs: str | None
    shows_output: bool

    @property
    def program(self) -> str:
        return self.text.partition(" ")[0]


def lines_of(page: str) -> Iterator[DocumentedLine]:
    """Yield the command lines in the code blocks of a page, in order."""
    for needs, block in _BLOCK.findall(page):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"\s*(\$ )?((?:megaponder|torchrun) .*)", line)
            if found is not None:
                mark = _MARK.search(found[2])
                yield DocumentedLine(
                    text=found[2],
                    needs=(mark[1].strip() if mark else needs) or None,
                    shows_output=bool(found[1]),
                )


def lines_to_run(page: Path) -> list[str]:
    """Return the lines of `megaponder` on a page that need nothing but this machine."""
    return [
        line.text
        for line in lines_of(page.read_text(encoding="utf-8"))
        if line.program == "megaponder"
        and line.needs is None
        and not line.shows_output
        and not PLACEHOLDER.search(line.text)
    ]
