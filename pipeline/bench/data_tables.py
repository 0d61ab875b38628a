"""The measurements of `megaponder bench data` as tables."""

from rich.console import Group, RenderableType
from rich.table import Table

from pipeline.bench.data import MUCH_TEXT_BYTES, DataMeasurements, relative_reading
from pipeline.bench.data_preparation import PreparationTime

MEGA = 1e6
INSTALL = "pip install 'megaponder[bench]'"


def render_measurements(measured: DataMeasurements) -> RenderableType:
    """Lay all measurements out."""
    return Group(
        _preparation(measured),
        _beside_datatrove(measured),
        _computed(measured),
        _reading(measured),
    )


def _preparation(measured: DataMeasurements) -> Table:
    text = measured.plain.text_bytes / MEGA
    table = _table(f"tokenizing {text:.1f} MB of JSONL, {measured.machine}", "way", "start of workers")
    for way in (measured.plain, *measured.prepared):
        speed = measured.plain.seconds / way.working_seconds
        table.add_row(
            _name(way), f"{way.start_seconds:.1f} s", *_rates(way, way.working_seconds), f"{speed:.2f} x"
        )
    table.caption = "rates and speed without the start of workers"
    return table


def _beside_datatrove(measured: DataMeasurements) -> RenderableType:
    theirs, ours = measured.datatrove, measured.ours_beside_datatrove
    if theirs is None:
        return f"datatrove is not installed, so nothing is compared with it; install it: {INSTALL}"
    table = _table("whole commands with one tokenizer.json, start of workers included", "way", "of it start")
    for way in (theirs, ours):
        speed = theirs.seconds / way.seconds
        table.add_row(_name(way), f"{way.start_seconds:.1f} s", *_rates(way, way.seconds), f"{speed:.2f} x")
    at_work = theirs.working_seconds / ours.working_seconds
    table.caption = f"without the start of workers: {at_work:.2f} x"
    return table


def _computed(measured: DataMeasurements) -> Table:
    title = f"computed, not measured: {MUCH_TEXT_BYTES / 1e12:.0f} TB of text with many such workers"
    table = Table(title=title)
    for column in ("workers", "tasks", "time", "of the workers busy"):
        table.add_column(column, justify="right")
    for row in measured.computed:
        hours = f"{row.seconds / 3600:.1f} h"
        table.add_row(f"{row.num_workers:,}", f"{row.num_tasks:,}", hours, f"{row.efficiency:.0%}")
    milliseconds = 1e3 * measured.task_overhead_seconds
    table.caption = (
        f"from {milliseconds:.0f} ms of a task beside its text, taken as if one process did all of it"
    )
    return table


def _reading(measured: DataMeasurements) -> Table:
    table = Table(title="reading rows from page cache, processor time of one core")
    for column in ("way", "M tokens/s", "speed"):
        table.add_column(column, justify="left" if column == "way" else "right")
    relative = relative_reading(measured)
    for name, rate in measured.reading_tokens_per_second.items():
        table.add_row(name, f"{rate / MEGA:.0f}", f"{relative[name]:.2f} x")
    return table


def _table(title: str, *first: str) -> Table:
    table = Table(title=title)
    for column in (*first, "seconds", "MB/s", "M tokens/s", "speed"):
        table.add_column(column, justify="left" if column == "way" else "right")
    return table


def _name(way: PreparationTime) -> str:
    workers = "" if way.num_workers == 0 else f", {way.num_workers} worker{'s' * (way.num_workers > 1)}"
    return f"{way.name}{workers}"


def _rates(way: PreparationTime, seconds: float) -> tuple[str, str, str]:
    return (
        f"{seconds:.1f}",
        f"{way.text_bytes / seconds / MEGA:.2f}",
        f"{way.num_tokens / seconds / MEGA:.2f}",
    )
