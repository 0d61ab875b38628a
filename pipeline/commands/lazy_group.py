"""A group of commands whose modules are imported when they are called, so that `--help` answers at once."""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Protocol

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEntry:
    """What is known of a command before its module is imported.

    Attributes:
        name: as it is typed.
        module: that defines it.
        attribute: there, a function with an ``EPILOG`` beside it, or a typer application with more commands.
        help: the first line of its own help.
    """

    name: str
    module: str
    attribute: str
    help: str


class _Command(Protocol):
    """What typer makes of a function or of an application."""

    callback: Any


class LazyGroup(TyperGroup):
    """The commands of a table, each loaded when it is called or asked for its own help."""

    entries: ClassVar[tuple[CommandEntry, ...]] = ()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for entry in self.entries:
            self.commands[entry.name] = TyperCommand(entry.name, help=entry.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the name of the command that is called, the command, and the arguments left for it."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else self.load(name), rest

    def load(self, name: str) -> Any:
        """Import a command's module, and return the command."""
        return load_command(next(entry for entry in self.entries if entry.name == name))


def load_command(entry: CommandEntry) -> Any:
    """Return a command, or a group of them, from its module."""
    module = import_module(entry.module)
    found = getattr(module, entry.attribute)
    # Inside a group, since typer takes a single command for the program itself.
    group = typer.Typer(rich_markup_mode="markdown", add_completion=False)
    group.callback()(_nothing)
    if isinstance(found, typer.Typer):
        group.add_typer(found, name=entry.name)
    else:
        group.command(entry.name, epilog=module.EPILOG)(found)
    commands: dict[str, _Command] = get_command(group).commands  # type: ignore[attr-defined]  # a group
    return commands[entry.name]


def _nothing() -> None:
    """Make a group of an application without commands of its own."""
