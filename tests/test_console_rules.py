"""Nothing prints without `pipeline.shared.console`, which escapes what comes from outside."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
OUR_PACKAGES = ("pipeline", "megatron_ext", "cluster", "data_prep")
CONSOLE = REPOSITORY / "pipeline" / "shared" / "console.py"


def called(node: ast.expr) -> str:
    """Return the name of what is called, with its module or object if that is a plain name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{called(node.value)}.{node.attr}"
    return ""


def raw_prints(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and name of every call that prints text as it is."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = called(node.func)
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        if name == "print" and "file" in keywords:
            # Into a file that was opened here.
            continue
        is_raw = name in ("print", "Console", "typer.echo", "typer.secho", "rich.print") or name.endswith(
            ("stdout.write", "stderr.write", "from_markup")
        )
        if name == "TextColumn":
            markup = keywords.get("markup")
            is_raw = not (isinstance(markup, ast.Constant) and markup.value is False)
        if name == "Panel":
            title = keywords.get("title")
            is_raw = title is not None and not (isinstance(title, ast.Call) and called(title.func) == "Text")
        if is_raw:
            yield node.lineno, name


def test_nothing_prints_text_as_it_is() -> None:
    found = [
        f"{file.relative_to(REPOSITORY)}:{line} {name}"
        for package in OUR_PACKAGES
        for file in sorted((REPOSITORY / package).rglob("*.py"))
        if file != CONSOLE and "hf_model" not in file.parts
        for line, name in raw_prints(file.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "print(name)",
        "typer.echo(name)",
        "Console().print(name)",
        "sys.stderr.write(name)",
        "Text.from_markup(name)",
        "Panel(text, title=name)",
        "TextColumn(name)",
    ],
)
def test_the_rule_finds_a_raw_print(source: str) -> None:
    assert list(raw_prints(source))


@pytest.mark.parametrize(
    "source",
    ["say(name)", "open_console().print(name)", "print(line, file=lines)", "TextColumn(x, markup=False)"],
)
def test_the_rule_lets_others_pass(source: str) -> None:
    assert not list(raw_prints(source))
