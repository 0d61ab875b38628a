"""Where tables are printed and bars move."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

TABLE_WIDTH = 110


def table_console() -> Console:
    """Return standard output; a file or a pipe has no width of its own, and gets one that tables fit in."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)


def open_bar(*, speaks: bool = True) -> Progress:
    """Return a bar on a terminal, which is gone when it is full; elsewhere it shows nothing."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not (speaks and console.is_terminal))
