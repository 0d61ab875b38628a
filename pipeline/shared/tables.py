"""Tables that can be read at any width.

The rule, where a table is wider than the terminal:

1. Columns with several words wrap between words, the widest first. A word, such as an id, a path or a number,
   is never cut.
2. If that is not enough, columns named as optional are dropped in their order, which a last line says.
3. If even that is not enough, each row becomes a block of lines ``heading value``.

Files and pipes are as wide as needed (:data:`pipeline.shared.console.FILE_WIDTH`).
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

__all__ = ["Table", "fitted_widths"]

# rich pads each cell by a space on both sides.
_PADDING = 2


class Table(RichTable):
    """A table of rich that follows the rule of this module.

    Args:
        headings, settings: of `rich.table.Table`.
        optional: headings of columns that may be dropped, the first one first.
    """

    def __init__(self, *headings: Column | str, optional: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*headings, **settings)
        self.optional = tuple(optional)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            # Above a narrow table, rich would break it.
            yield Text(str(self.title), style="bold", overflow="fold")
        columns, dropped = list(self.columns), []
        widths = self._widths(columns, console, options)
        for heading in self.optional:
            if widths is not None:
                break
            dropped += [column for column in columns if str(column.header) == heading]
            columns = [column for column in columns if str(column.header) != heading]
            widths = self._widths(columns, console, options)
        if widths is not None:
            yield from self._lines(columns, widths, console, options)
            if dropped:
                names = ", ".join(dict.fromkeys(str(column.header) for column in dropped))
                yield Text(f"not shown at this width: {names}", style="dim")
        elif self.show_header:
            yield from _blocks(self.columns)
            if self.caption:
                yield Text(str(self.caption), style="dim", overflow="fold")
        else:
            yield from self._lines(columns, self._folded(columns, console, options), console, options)

    def _widths(
        self, columns: Sequence[Column], console: Console, options: ConsoleOptions
    ) -> list[int] | None:
        measured = [self._measured(column, console, options) for column in columns]
        return fitted_widths(measured, self._room(columns, options))

    def _room(self, columns: Sequence[Column], options: ConsoleOptions) -> int:
        """Return the characters that all cells of a line may have together."""
        frame = 0 if self.box is None else len(columns) - 1 + (2 if self.show_edge else 0)
        return options.max_width - frame - _PADDING * len(columns)

    def _measured(self, column: Column, console: Console, options: ConsoleOptions) -> tuple[int, int]:
        """Return the longest word and the longest line of a column."""
        unlimited = options.update(width=1_000_000)
        cells: list[RenderableType] = list(column.cells)
        if self.show_header:
            cells.append(column.header)
        if self.show_footer:
            cells.append(column.footer)
        found = [console.measure(cell, options=unlimited) for cell in cells]
        least = max((one.maximum if column.no_wrap else one.minimum for one in found), default=0)
        return max(least, column.min_width or 0), max((one.maximum for one in found), default=0)

    def _folded(self, columns: Sequence[Column], console: Console, options: ConsoleOptions) -> list[int]:
        """Return widths where the last column takes what is left, with long words broken."""
        others = [self._measured(column, console, options)[1] for column in columns[:-1]]
        return [*others, max(self._room(columns, options) - sum(others), 1)]

    def _lines(
        self, columns: Sequence[Column], widths: Sequence[int], console: Console, options: ConsoleOptions
    ) -> RenderResult:
        table = copy.copy(self)
        table.title, table.columns, table.rows = None, [], []
        for column, width in zip(columns, widths, strict=True):
            table.add_column(
                column.header,
                column.footer,
                header_style=column.header_style,
                style=column.style,
                justify=column.justify,
                overflow="fold",
                width=width,
            )
        for row in zip(*(column.cells for column in columns), strict=True):
            table.add_row(*row)
        yield from RichTable.__rich_console__(table, console, options)


def fitted_widths(measured: Sequence[tuple[int, int]], room: int) -> list[int] | None:
    """Return the width of each column, as wide as possible; the widest ones become narrower first.

    Args:
        measured: least and greatest width of each column.
        room: for all together.
    Returns:
        None if the least widths do not fit.
    """
    if sum(least for least, _ in measured) > room:
        return None
    widths = [max(least, min(most, room)) for least, most in measured]
    while sum(widths) > room:
        wide = [index for index, (least, _) in enumerate(measured) if widths[index] > least]
        widths[max(wide, key=lambda index: widths[index])] -= 1
    return widths


def _blocks(columns: Sequence[Column]) -> Iterator[RenderableType]:
    names = [str(column.header) for column in columns]
    size = max(map(len, names))
    for row in zip(*(column.cells for column in columns), strict=True):
        for name, cell in zip(names, row, strict=True):
            if str(cell):
                value = cell if isinstance(cell, Text) else str(cell)
                yield Text.assemble((f"{name:<{size}}  ", "bold"), value, overflow="fold")
        yield Text()
