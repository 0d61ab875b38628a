"""The measurements of `python -m tests.bench data` as tables."""

from rich.console import Group, RenderableType
from rich.table import Table

from tests.bench.data import MUCH_TEXT_BYTES, DataMeasurements, relative_reading
from tests.bench.data_preparation import PreparationTime

MEGA = 1e6
INSTALL = "pip install -e '.[bench]'"


def render_measurements(measured: DataMeasurements) -> RenderableType:
    """Return all measurements as tables."""
    return Group(
        _preparation(measured),
        _against_datatrove(measured),
        _computed(measured),
        _reading(measured),
    )


def _preparation(measured: DataMeasurements) -> Table:
    text = measured.plain.text_bytes / MEGA
    table = _table(f"tokenizing {text:.1f} MB of JSONL, {measured.machine}")
    for way in (measured.plain, *measured.prepared):
        speed = measured.plain.seconds / way.working_seconds
        table.add_row(_name(way), *_times(way), *_rates(way, way.working_seconds), f"{speed:.2f} x")
    table.caption = "rates and speed without start-up"
    return table


def _against_datatrove(measured: DataMeasurements) -> RenderableType:
    theirs, ours = measured.datatrove, measured.ours_beside_datatrove
    if theirs is None:
        return f"datatrove is not installed, so there is no comparison with it; install it: {INSTALL}"
    table = _table("the same text with one tokenizer.json")
    for way in (theirs, ours):
        speed = theirs.seconds / way.seconds
        table.add_row(_name(way), *_times(way), *_rates(way, way.seconds), f"{speed:.2f} x")
    at_work = theirs.seconds / ours.working_seconds
    table.caption = f"rates and speed of the complete command; without the start-up of Ray: {at_work:.2f} x"
    return table


def _computed(measured: DataMeasurements) -> Table:
    title = f"computed, not measured: {MUCH_TEXT_BYTES / 1e12:.0f} TB of text with many such workers"
    table = Table(title=title)
    for column in ("workers", "tasks", "time", "workers busy"):
        table.add_column(column, justify="right")
    for row in measured.computed:
        hours = f"{row.seconds / 3600:.1f} h"
        table.add_row(f"{row.num_workers:,}", f"{row.num_tasks:,}", hours, f"{row.efficiency:.0%}")
    milliseconds = 1e3 * measured.task_overhead_seconds
    table.caption = f"assumes {milliseconds:.0f} ms of overhead per task, all of it in one process"
    return table


def _reading(measured: DataMeasurements) -> Table:
    table = Table(title="reading rows from page cache, processor time of one core")
    for column in ("way", "M tokens/s", "speed"):
        table.add_column(column, justify="left" if column == "way" else "right")
    relative = relative_reading(measured)
    for name, rate in measured.reading_tokens_per_second.items():
        table.add_row(name, f"{rate / MEGA:.0f}", f"{relative[name]:.2f} x")
    return table


def _table(title: str) -> Table:
    table = Table(title=title)
    for column in ("way", "total", "without start-up", "MB/s", "M tokens/s", "speed"):
        table.add_column(column, justify="left" if column == "way" else "right")
    return table


def _name(way: PreparationTime) -> str:
    workers = "" if way.num_workers == 0 else f", {way.num_workers} worker{'s' * (way.num_workers > 1)}"
    return f"{way.name}{workers}"


def _times(way: PreparationTime) -> tuple[str, str]:
    return f"{way.seconds:.1f} s", f"{way.working_seconds:.1f} s"


def _rates(way: PreparationTime, seconds: float) -> tuple[str, str]:
    return f"{way.text_bytes / seconds / MEGA:.2f}", f"{way.num_tokens / seconds / MEGA:.2f}"
