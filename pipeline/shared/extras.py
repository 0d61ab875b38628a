"""How the optional dependencies of this program are installed: it is in no package index."""

__all__ = ["how_to_install"]


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra of pyproject.toml."""
    return f"pip install -e '.[{extra}]' in the folder of megaponder's sources"
