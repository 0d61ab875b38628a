"""Text to measure with: sources of this Python and its packages, as many times as it takes."""

import itertools
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from data_prep.inputs.documents import INSTALLED_PACKAGES

MEGA = 1_000_000
# Enough files that any number of workers of one machine has work, none of them tiny.
_FILES_WANTED = 32
_SMALLEST_FILE_BYTES = MEGA // 2


def write_corpus(folder: Path, num_bytes: int) -> tuple[Path, ...]:
    """Write JSONL files with about so many bytes of text, the same ones on the same machine.

    Args:
        folder: receives them.
        num_bytes: of text, in UTF-8.
    """
    folder.mkdir(parents=True)
    limit = max(num_bytes // _FILES_WANTED, _SMALLEST_FILE_BYTES)
    paths: list[Path] = []
    remaining, room = num_bytes, 0
    lines: list[str] = []
    for text in _documents():
        if remaining <= 0:
            break
        lines.append(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        remaining, room = remaining - len(text.encode()), room + len(text.encode())
        if room >= limit or remaining <= 0:
            paths.append(folder / f"part-{len(paths):05d}.jsonl")
            paths[-1].write_text("".join(lines), encoding="utf-8")
            lines, room = [], 0
    return tuple(paths)


def _documents() -> Iterator[str]:
    """Yield every source once, and then again and again, changed each time."""
    paths = []
    for path in _sources():
        text = path.read_text(encoding="utf-8", errors="replace")
        if text.strip():
            paths.append(path)
            yield text
    for repetition in itertools.count(1):
        for number, path in enumerate(paths):
            yield _changed(path.read_text(encoding="utf-8", errors="replace"), repetition, number)


def _sources() -> Iterator[Path]:
    """The standard library's, and then, where that is not enough, those of installed packages."""
    places = sysconfig.get_paths()
    standard = Path(places["stdlib"])
    for path in sorted(standard.rglob("*.py")):
        if not set(INSTALLED_PACKAGES) & set(path.relative_to(standard).parts):
            yield path
    yield from sorted(Path(places["purelib"]).rglob("*.py"))


def _changed(text: str, repetition: int, number: int) -> str:
    """Another document of the same lines: some are left out, and it begins elsewhere."""
    chance = random.Random(f"{repetition} {number}")
    lines = [line for line in text.splitlines(keepends=True) if chance.random() > 0.05]
    first = chance.randrange(len(lines) + 1)
    return "".join([f"# copy {repetition}\n", *lines[first:], *lines[:first]])
