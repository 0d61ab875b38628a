"""Measured times of looping and flushing beside what the order of the work lets expect."""

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table

from pipeline.config.schema import RunConfig
from pipeline.cost.schedule import backward_time, flushing_timeline, looping_timeline
from tests.bench.machine import machine_name, num_processors
from tests.bench.pipeline import PassTimes

COLUMNS = ("stages", "micro-batches", "looping", "flushing", "gain", "expected", "expected bubbles")


def render_pass_times(config: RunConfig, times: Sequence[PassTimes]) -> RenderableType:
    """Lay the measurements out.

    Args:
        config: what was run.
        times: at least one.
    """
    title = f"{config.name}: {config.ponder.method}, {config.training.precision}, {machine_name()}"
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for row in times:
        table.add_row(*_cells(row, backward_time(config.parallel.recompute)))
    largest = max(row.largest_difference for row in times)
    lines = [
        "gain: how many times faster looping is; expected: from the order of the work alone, by the rows of "
        "each pass, on stages of equal speed",
        f"largest relative difference of gradients: {largest:.1e}",
    ]
    most = max(row.num_stages for row in times)
    if most > num_processors():
        lines.append(
            f"{most} stages share {num_processors()} cores: a stage that waits leaves its own to the others, "
            "which hides the bubbles"
        )
    return Group(table, *lines)


def _cells(row: PassTimes, backward_per_forward: int) -> list[str]:
    looping, flushing = (
        timeline(row.num_stages, row.num_micro_batches, row.slots, backward_per_forward=backward_per_forward)
        for timeline in (looping_timeline, flushing_timeline)
    )
    return [
        str(row.num_stages),
        str(row.num_micro_batches),
        f"{1e3 * row.looping_seconds:.0f} ms",
        f"{1e3 * row.flushing_seconds:.0f} ms",
        f"{row.speedup:.2f} x",
        f"{flushing.duration / looping.duration:.2f} x",
        f"{looping.bubble_share:.1%} and {flushing.bubble_share:.1%}",
    ]
