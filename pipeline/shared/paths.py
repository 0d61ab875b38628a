"""Paths as users type them, where no shell has expanded them: in files of settings, and after `--output=`."""

import os
import re
from pathlib import Path

__all__ = ["UnknownNameError", "expand_path"]

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


class UnknownNameError(ValueError):
    """A path names a variable that is not set, or the home of a user that does not exist."""


def expand_path(path: str) -> str:
    """Return a path with `~`, `~user`, `$NAME` and `${NAME}` replaced by what they stand for.

    A part with a dollar sign that exists under this very name is what it is called. Paths that were expanded
    before, such as those in a stored configuration, are therefore returned as they are.

    Raises:
        UnknownNameError: a variable is not set or empty, or a home folder is not known.
    """
    if path.startswith("~"):
        path = _with_home(path)
    if not _VARIABLE.search(path) or os.path.lexists(_up_to_last_variable(path)):
        return path
    expanded = _VARIABLE.sub(_value, path)
    # A file whose name begins with a tilde would be taken for a home when it is read again.
    return str(Path.cwd() / expanded) if expanded.startswith("~") else expanded


def _with_home(path: str) -> str:
    user, separator, rest = path.partition("/")
    try:
        home = str(Path(user).expanduser())
    except RuntimeError:
        raise UnknownNameError(f"{user} has no known home folder here; write the folder itself") from None
    return f"{home}{separator}{rest}"


def _up_to_last_variable(path: str) -> str:
    """Return the beginning of a path up to the last part that holds a variable."""
    parts = path.split("/")
    last = max(index for index, part in enumerate(parts) if _VARIABLE.search(part))
    return "/".join(parts[: last + 1])


def _value(match: re.Match[str]) -> str:
    name = match[1] or match[2]
    value = os.environ.get(name)
    if not value:
        raise UnknownNameError(f"the variable {name} is not set; set it, or write the folder itself")
    return value
