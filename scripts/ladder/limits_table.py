"""The rows of a ladder under limits on the steps, as tables."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD

from pipeline.shared.tables import Table
from scripts.ladder.means import Limit, compared, flops_of, has_control, mean_curve, milliseconds_of
from scripts.ladder.points import RowPoints
from scripts.ladder.results import render_cells

HEADINGS = ("row", "limit", "at", "seeds", "MFLOPs", "ms")


def render_limits(rows: Sequence[RowPoints]) -> Table:
    """Return the rows of a part for a terminal."""
    table = Table(*_headings(rows), box=SIMPLE_HEAD)
    for cells in _cells(rows):
        table.add_row(*cells)
    return table


def render_limits_markdown(rows: Sequence[RowPoints]) -> str:
    """Return the rows of a part as a Markdown table."""
    return render_cells([_headings(rows), *_cells(rows)])


def _headings(rows: Sequence[RowPoints]) -> tuple[str, ...]:
    return (*HEADINGS, "loss - vanilla" if has_control(rows) else "loss")


def _cells(rows: Sequence[RowPoints]) -> Iterator[tuple[str, ...]]:
    """Yield the points of budgets, then those of numbers of steps, of every row."""
    sign = "+" if has_control(rows) else ""
    for row in compared(rows):
        for limit in Limit:
            times = {point.name: point.x for point in mean_curve(row, limit, milliseconds_of)}
            for point in mean_curve(row, limit, flops_of):
                if limit is not Limit.FIXED and not point.name.endswith("%"):
                    # All steps, which are among the numbers of steps.
                    continue
                loss = f"{point.y:{sign}.4f}"
                yield (
                    row.row,
                    limit.value,
                    point.name,
                    str(point.num_seeds),
                    f"{point.x / 1e6:.2f}",
                    f"{times[point.name]:.2f}" if point.name in times else "",
                    f"{loss} ± {point.spread:.4f}" if point.num_seeds > 1 else loss,
                )
