"""Where tables are printed."""

from rich.console import Console

TABLE_WIDTH = 110


def table_console() -> Console:
    """Return standard output; a file or a pipe has no width of its own, and gets one that tables fit in."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)
