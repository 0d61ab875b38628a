"""`megaponder config`: what settings there are."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.text import Text

from pipeline.commands.shared import JsonFile, examples, show_or_write
from pipeline.config.reference import (
    Explained,
    config_schema,
    explain_settings,
    find_settings,
    render_reference,
)
from pipeline.shared.console import open_console, say
from pipeline.shared.files import write_atomically
from pipeline.shared.tables import Table

app = typer.Typer(no_args_is_help=True, help="Explain settings; write the schema of configuration files.")


@app.command(
    epilog=examples(
        "megaponder config explain", "megaponder config explain ponder", "megaponder config explain lr"
    )
)
def explain(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="A setting (optimizer.lr, lr), a group (optimizer), or Megatron's name; default: all.",
            show_default=False,
        ),
    ] = None,
    json_file: JsonFile = None,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the page of the docs.")] = False,
) -> None:
    """Explain settings: what they are, what they accept, their defaults, and which methods use them."""
    found = explain_settings() if key is None else find_settings(key)

    def show() -> None:
        if as_markdown:
            say(render_reference(found), nl=False)
        elif key is None:
            open_console().print(_overview(found))
        else:
            for one in found:
                open_console().print(_detailed(one))

    show_or_write(show, [asdict(one) for one in found], json_file)


@app.command(
    epilog=examples("megaponder config schema", "megaponder config schema --output run_config.schema.json")
)
def schema(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="JSON file to write; default: standard output.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write the JSON Schema of configuration files, by which editors complete and check them.

    With `# yaml-language-server: $schema=FILE` as its first line a file is checked while it is written.
    """
    content = json.dumps(config_schema(), indent=1) + "\n"
    if output is None:
        say(content, nl=False)
    else:
        write_atomically(output, content)
        say(f"written to {output}")


def _overview(settings: list[Explained]) -> Table:
    table = Table("setting", "default", "meaning", box=SIMPLE_HEAD, optional=("default",))
    for one in settings:
        table.add_row(one.path, "required" if one.default is None else one.default, one.description)
    return table


def _detailed(one: Explained) -> Text:
    lines = [
        ("accepts", one.accepts),
        ("default", "must be given" if one.default is None else one.default or "see above"),
        ("used by", ", ".join(one.methods)),
        ("also", ", ".join(one.other_names)),
    ]
    text = Text.assemble((one.path, "bold"), f"\n  {one.description}\n")
    for name, value in lines:
        if value:
            text.append(f"  {name:8}", style="dim").append(f"{value}\n")
    return text
