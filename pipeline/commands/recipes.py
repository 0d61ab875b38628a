"""`megaponder recipes`: the configurations that come with the program."""

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD

from pipeline.commands.shared import examples
from pipeline.config.load import load_config
from pipeline.config.recipes import description_of, find_recipe, nearest_recipe, portable_text, recipe_names
from pipeline.shared.console import open_console, say
from pipeline.shared.files import write_atomically
from pipeline.shared.tables import Table

app = typer.Typer(
    no_args_is_help=True,
    help="List, show and copy the recipes that `--config` knows by name.",
    epilog=examples(
        "megaponder recipes list", "megaponder train --config tiny_ponderlm3 data.path=runs/data"
    ),
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="As `recipes list` has it.")]


@app.command("list", epilog=examples("megaponder recipes list"))
def list_recipes() -> None:
    """List the recipes with their methods."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("NAME", no_wrap=True)
    table.add_column("METHOD", overflow="fold")
    table.add_column("WHAT")
    for name in recipe_names():
        file = _file_of(name)
        table.add_row(name, load_config(file).ponder.method, description_of(file))
    open_console().print(table)


@app.command(epilog=examples("megaponder recipes show tiny_ponderlm3"))
def show(name: Name) -> None:
    """Print a recipe; `train --config NAME --dry-run` also resolves its base."""
    say(portable_text(_file_of(name)), nl=False)


@app.command(epilog=examples("megaponder recipes copy llama_410m_ponderlm3 run.yaml"))
def copy(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="To write; must not exist.")],
) -> None:
    """Copy a recipe to a file of your own, which works in any folder."""
    if file.exists():
        raise typer.BadParameter(f"{file} exists; choose another file", param_hint="FILE")
    write_atomically(file, portable_text(_file_of(name)))
    say(f"written to {file}")


def _file_of(name: str) -> Path:
    file = find_recipe(name)
    if file is None:
        nearest = nearest_recipe(name)
        cure = "see `megaponder recipes list`" if nearest is None else f"did you mean {nearest}?"
        raise typer.BadParameter(f"there is no recipe {name}; {cure}", param_hint="NAME")
    return file
