"""The pipeline timeline of one training step, drawn and counted (`megaponder train --show-schedule`)."""

from collections.abc import Mapping, Sequence
from string import ascii_lowercase, digits

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.text import Text

from pipeline.config.schema import RunConfig
from pipeline.cost.schedule import (
    Interval,
    Timeline,
    backward_time,
    flushing_timeline,
    looping_timeline,
)
from pipeline.shared.console import open_console
from pipeline.shared.tables import Table
from pipeline.step.settings import step_settings

# A piece of work is at least this wide, for the letter of its micro-batch and the digit of its pass.
COLUMNS_PER_TIME = 2
# A wider chart is unreadable in a terminal; then only figures are shown.
LARGEST_CHART_COLUMNS = 640
PASS_NAMES = digits + ascii_lowercase
COLORS = ("cyan", "green", "yellow", "magenta", "blue", "red")
IDLE = "."
LEGEND = "letter: micro-batch, small in forward, capital in backward; digit and colour: pass; ...: idle"
EXPLANATION = (
    "Computed, not measured. Time 1 is the forward of one row per token on one stage; held are the rows per "
    "token of micro-batches between forward and backward, on the stage that holds most."
)


def show_schedule(config: RunConfig, console: Console | None = None) -> None:
    """Print the timeline of the first step of a run, and for comparison that of flushing between passes.

    Args:
        config: the run.
        console: None is standard output.
    """
    settings = step_settings(config, iteration=0, consumed_tokens=0)
    steps = settings.limits.num_steps
    num_thoughts = config.ponder.num_latent_thoughts if steps is None else steps
    plan = config.ponder.method.facts.plan(num_thoughts, settings.num_jacobi_iterations)
    plan = plan.truncated(settings.gradient_passes)
    slots = plan.slots
    stages, micro_batches = config.parallel.pipeline, config.num_micro_batches
    console = console or open_console()
    heading = (
        f", first step: {config.ponder.method}, J = {settings.num_jacobi_iterations}; "
        f"rows per token by pass: {', '.join(map(str, slots))}; micro-batches: {micro_batches}; "
        f"pipeline stages: {stages}"
    )
    console.print(Text.assemble((config.name, "bold"), heading))
    timelines = {
        name: timeline(
            stages,
            micro_batches,
            slots,
            backward_per_forward=backward_time(config.parallel.recompute),
            first_with_gradient=plan.first_with_gradient,
        )
        for name, timeline in (
            ("passes as virtual stages", looping_timeline),
            ("flushed between passes", flushing_timeline),
        )
    }
    console.print(render_schedule(timelines, width=console.width))


def render_schedule(timelines: Mapping[str, Timeline], *, width: int) -> RenderableType:
    """Render timelines of the same step: charts of small ones, figures of all.

    Args:
        timelines: by name; shares and times are compared with the first.
        width: columns of the console.
    """
    figures = Group(render_figures(timelines), Text(EXPLANATION, style="dim"))
    if not all(map(fits_a_chart, timelines.values())):
        return figures
    charts = [
        Group(Text(name, style="bold"), *chart_lines(timeline, width=width), Text())
        for name, timeline in timelines.items()
    ]
    return Group(*charts, Text(LEGEND, style="dim"), figures)


def fits_a_chart(timeline: Timeline) -> bool:
    """Whether a timeline is short enough, and has few enough passes and micro-batches, to be drawn."""
    works = [interval.work for intervals in timeline.stages for interval in intervals]
    return (
        timeline.duration * COLUMNS_PER_TIME <= LARGEST_CHART_COLUMNS
        and max(work.micro_batch for work in works) < len(ascii_lowercase)
        and max(work.pass_index for work in works) < len(PASS_NAMES)
    )


def chart_lines(timeline: Timeline, *, width: int) -> list[Text]:
    """Draw one line per stage, time from left to right, wrapped to the width.

    Args:
        timeline: see :func:`fits_a_chart`.
        width: columns.
    """
    labels = [f"stage {stage} " for stage in range(len(timeline.stages))]
    room = max(width - max(map(len, labels)), COLUMNS_PER_TIME)
    rows = [_chart_row(intervals, timeline.duration) for intervals in timeline.stages]
    lines: list[Text] = []
    for start in range(0, timeline.duration * COLUMNS_PER_TIME, room):
        lines += [
            Text.assemble(label.rjust(max(map(len, labels))), row[start : start + room])
            for label, row in zip(labels, rows, strict=True)
        ]
        lines.append(Text())
    return lines[:-1]


def render_figures(timelines: Mapping[str, Timeline]) -> Table:
    """Return a table of durations, bubbles and what is held for backward."""
    table = Table(box=SIMPLE_HEAD)
    for column in ("step", "time", "relative", "bubble", "held for backward"):
        table.add_column(column, justify="left" if column == "step" else "right")
    first = next(iter(timelines.values()))
    for name, timeline in timelines.items():
        table.add_row(
            name,
            f"{timeline.duration:,}",
            f"{timeline.duration / first.duration:.2f}",
            f"{timeline.bubble_share:.1%}",
            f"{timeline.peak_held:,} rows",
        )
    return table


def _chart_row(intervals: Sequence[Interval], duration: int) -> Text:
    row = Text()
    for interval in intervals:
        row.append(IDLE * (interval.start * COLUMNS_PER_TIME - len(row)), style="dim")
        row.append(_cell(interval), style=_style(interval))
    return row.append(IDLE * (duration * COLUMNS_PER_TIME - len(row)), style="dim")


def _cell(interval: Interval) -> str:
    work = interval.work
    letter = ascii_lowercase[work.micro_batch]
    text = (letter.upper() if work.is_backward else letter) + PASS_NAMES[work.pass_index]
    return text.ljust((interval.end - interval.start) * COLUMNS_PER_TIME, "-")


def _style(interval: Interval) -> str:
    color = COLORS[interval.work.pass_index % len(COLORS)]
    return f"black on {color}" if interval.work.is_backward else color
