"""Every command line in README and docs is one that the program takes."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipeline import cli
from pipeline.commands.lazy_group import load_command
from pipeline.config.aliases import find_alias
from pipeline.config.load import setting_paths
from pipeline.config.recipes import find_recipe

REPOSITORY = Path(__file__).parents[3]
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md")))
# Dated entries are about the program of their day.
DATED = ("log.md", "results.md")
# Placeholders for what the reader types: `RUN`, `[--rank R | ...]`, `...`.
PLACEHOLDER = re.compile(r"\.\.\.|[\[\]|{}]|^[A-Z]+$")
# An example of what is refused.
REFUSED = "trian-iters=100"
SETTINGS = frozenset(setting_paths())


def written_lines(text: str) -> Iterator[str]:
    """Yield the command lines of a page, without what follows them on their line."""
    for block in re.findall(r"```[^\n]*\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"\s*(?:\$ )?(?:megaponder|torchrun .*-m pipeline\.cli) (.*)", line)
            if found is not None:
                yield found[1]
    inline = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from re.findall(r"`megaponder ([^`]+)`", inline)


def all_lines() -> list[tuple[str, str]]:
    return [
        (page.name, line)
        for page in PAGES
        if page.name not in DATED
        for line in written_lines(page.read_text(encoding="utf-8"))
        if REFUSED not in line and line.split()[0].isalpha() and line.split()[0].islower()
    ]


def command_and_rest(words: list[str]) -> tuple[Any, list[str]]:
    """Return the command that the first words name, and the others."""
    entry = next((entry for entry in cli.COMMANDS if entry.name == words[0]), None)
    assert entry is not None, f"there is no command {words[0]}"
    command, rest = load_command(entry), words[1:]
    inner = getattr(command, "commands", None)
    if inner is not None and rest and re.fullmatch("[a-z][a-z-]*", rest[0]):
        assert rest[0] in inner, f"there is no command {' '.join(words[:2])}"
        return inner[rest[0]], rest[1:]
    return command, rest


def check_options(command: Any, words: list[str]) -> None:
    known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
    for word in words:
        name = word.strip("[]").partition("=")[0]
        if re.fullmatch("-[a-z]|--[a-z-]+", name):
            assert name in known, f"{command.name} has no option {name}"


def check_settings(words: list[str]) -> None:
    for word in words:
        name, separator, _ = word.partition("=")
        if separator and re.fullmatch(r"[a-z][a-z_.-]*", name):
            assert name in SETTINGS or find_alias(name) is not None, f"there is no setting {name}"


@pytest.mark.parametrize(("page", "line"), all_lines())
def test_a_command_line_is_one_that_the_program_takes(page: str, line: str) -> None:
    words = shlex.split(line.replace("`", ""), comments=True)
    words = words[: next((at for at, word in enumerate(words) if word in ("|", "2>&1", "&&")), len(words))]
    command, rest = command_and_rest(words)
    check_options(command, rest)
    check_settings(rest)
    is_complete = "--config" in rest or len(rest) > 1
    if is_complete and not any(PLACEHOLDER.search(word) for word in rest):
        # Unknown options, missing arguments and values of other types raise an error.
        command.make_context(command.name, list(rest))
    for option, value in pairwise(rest):
        if option == "--config" and (value.startswith("pipeline/") or ("." not in value and value.islower())):
            assert find_recipe(value) is not None or (REPOSITORY / value).is_file(), f"{value} is missing"


def test_the_page_of_commands_lists_all_of_them() -> None:
    page = (REPOSITORY / "docs" / "commands.md").read_text(encoding="utf-8")
    listed: set[tuple[str, ...]] = set()
    for row in re.findall(r"^\| (`[a-z][^|]*) \| ", page, re.MULTILINE):
        first, *others = re.findall(r"`([a-z -]+)`", row)
        group = first.split()[:-1]
        listed |= {tuple(first.split()), *((*group, other) for other in others)}
    existing: set[tuple[str, ...]] = set()
    for entry in cli.COMMANDS:
        inner = getattr(load_command(entry), "commands", None)
        existing |= {(entry.name,)} if inner is None else {(entry.name, name) for name in inner}
    assert listed == existing


def test_the_command_lines_are_found() -> None:
    block = "```\n$ megaponder train \\\n   -c x  # why\ntorchrun -m pipeline.cli eval y\n```\n"
    text = f"`megaponder eval`\n{block}"
    assert [line.split() for line in written_lines(text)] == [
        ["train", "-c", "x", "#", "why"],
        ["eval", "y"],
        ["eval"],
    ]


@pytest.mark.parametrize("line", ["trian -c x", "jobs lst", "train --cofig x", "train -c x trian-iters=3"])
def test_a_mistake_in_a_line_is_found(line: str) -> None:
    with pytest.raises(AssertionError):
        test_a_command_line_is_one_that_the_program_takes("page", line)
