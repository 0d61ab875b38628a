"""The console that tables are printed to."""

from rich.console import Console

TABLE_WIDTH = 110


def table_console() -> Console:
    """Return standard output, wide enough for our tables where a file or a pipe has no width of its own."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)
