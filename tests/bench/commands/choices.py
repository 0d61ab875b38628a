"""Options whose values are names from a list."""

from collections.abc import Collection, Sequence

import typer


def refuse_unknown(names: Sequence[str], known: Collection[str], option: str) -> None:
    """Raise a usage error if a name is not among the known ones."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"must be among {', '.join(known)}, but is {unknown[0]}", param_hint=option)
