"""Types in the help: only where they tell something, so neither `--dry-run <bool>` nor `RUN <path>`."""

from typing import Any

__all__ = ["hide_obvious_types", "without_obvious_types"]


def hide_obvious_types(command: Any) -> None:
    """Let the help of a command, and of those below it, show only types that tell something."""
    for inner in getattr(command, "commands", {}).values():
        hide_obvious_types(inner)
    params_of = command.get_params
    command.get_params = lambda context: without_obvious_types(params_of(context))


def without_obvious_types(params: list[Any]) -> list[Any]:
    """Return parameters that are described without the types of switches and of named arguments."""
    for param in params:
        if getattr(param, "is_bool_flag", False):
            # Typer shows the metavar of an option in place of its type.
            param.metavar = ""
        elif param.param_type_name == "argument" and param.metavar is not None:
            param.display_type_rich = _no_type
    return params


def _no_type(ctx: Any) -> None:
    """Show no type."""
