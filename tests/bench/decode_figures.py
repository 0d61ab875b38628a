"""Time and FLOPs saved in decoding, as a table and as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.shared.units import metric
from tests.bench.decode import ONE_STEP, TOKEN_BY_TOKEN, VANILLA, DecodeTime
from tests.bench.decode_other import OTHER
from tests.bench.decode_transformers import THEIRS

# Shares that differ by less are not worth a ratio.
SMALLEST_SAVING = 0.005
# Cost of a call of the layers and of each of its rows, of which only the ratio matters: milliseconds of
# six layers of 512 in fp32 on one thread, where a call first of all reads the weights.
CALL_COST, ROW_COST = 43.0, 3.5
COLUMNS = (
    "decoding",
    "steps",
    "calls",
    "rows/call",
    "ms/token",
    "least",
    "CPU ms",
    "prompts, ms",
    "saved",
    "FLOPs",
    "saved",
    "reached",
    "by calls",
    "reached",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeFigures:
    """Times of all ways at one batch size, and the ratios between them.

    Attributes:
        times: the first is the baseline of the others.
        by_cpu: whether ratios are of CPU seconds, which other processes on the machine change least; only on
            one thread do they say how fast it is.
    """

    times: tuple[DecodeTime, ...]
    by_cpu: bool = False

    @property
    def batch_size(self) -> int:
        """Sequences that are decoded together."""
        return self.times[0].batch_size

    def times_as_long(self, row: DecodeTime, other: DecodeTime) -> float:
        """Return the time of one way over that of another: the median over rounds.

        The two ran in the same round, so that a machine that is slower for a while slows both.
        """
        figure = "cpu_seconds" if self.by_cpu else "seconds"
        pairs = zip(row.rounds, other.rounds, strict=True)
        return median(float(getattr(one, figure) / getattr(two, figure)) for one, two in pairs)

    def named(self, name: str) -> DecodeTime | None:
        """Return a row; None where that way was not measured."""
        return next((row for row in self.times if row.name == name), None)

    def time_saved(self, row: DecodeTime) -> float:
        """Return the share of time that a way saves relative to no pruning."""
        return 1 - self.times_as_long(row, self.times[0])

    def flops_saved(self, row: DecodeTime) -> float:
        """Return the share of FLOPs that a way saves relative to no pruning."""
        return 1 - row.flops_per_token / self.times[0].flops_per_token

    def calls_saved(self, row: DecodeTime) -> float:
        """Return the share of time that its calls and their rows promise to save relative to no pruning."""
        return 1 - computed_cost(row) / computed_cost(self.times[0])

    def gain_reached(self, row: DecodeTime) -> float | None:
        """Return the share of time that a way saves over the share of FLOPs; None where it saves none."""
        return _reached(self.time_saved(row), self.flops_saved(row))

    def calls_gain_reached(self, row: DecodeTime) -> float | None:
        """Return the share of time that a way saves over what its calls promise; None where that is none."""
        return _reached(self.time_saved(row), self.calls_saved(row))

    def speedup(self, row: DecodeTime, over: str = TOKEN_BY_TOKEN) -> float | None:
        """Return the speed relative to token by token, or to another checkout; None where not measured."""
        other = self.named(row.name + over)
        return None if other is None else self.times_as_long(other, row)

    def computed_speedup(self, row: DecodeTime, over: str = TOKEN_BY_TOKEN) -> float | None:
        """Return the speedup that calls and rows promise."""
        other = self.named(row.name + over)
        return None if other is None else computed_cost(other) / computed_cost(row)

    @property
    def speedup_at_one_step(self) -> float | None:
        """Speed of one step per token relative to no pruning; None where not measured."""
        row = self.named(ONE_STEP)
        return None if row is None else self.times_as_long(self.times[0], row)

    @property
    def ratio_to_transformers(self) -> float | None:
        """Time of our vanilla decoding over that of transformers; None if not measured."""
        ours, theirs = self.named(VANILLA), self.named(THEIRS)
        return None if ours is None or theirs is None else self.times_as_long(ours, theirs)


def computed_cost(row: DecodeTime) -> float:
    """Return the cost of one token of each sequence by the calls of the layers and the rows of each."""
    return row.median("calls_per_token") * (CALL_COST + ROW_COST * row.median("rows_per_call"))


def _reached(saved: float, promised: float) -> float | None:
    return saved / promised if promised > SMALLEST_SAVING else None


def decode_figures(times: Sequence[DecodeTime], *, by_cpu: bool = False) -> list[DecodeFigures]:
    """Return the times with their ratios, by batch size."""
    batch_sizes = list(dict.fromkeys(row.batch_size for row in times))
    return [
        DecodeFigures(times=tuple(row for row in times if row.batch_size == size), by_cpu=by_cpu)
        for size in batch_sizes
    ]


def render_figures(figures: DecodeFigures, *, title: str) -> Iterator[Table]:
    """Yield a table of the times and one of ratios."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[0] else "right")
    for row in figures.times:
        table.add_row(
            row.name,
            f"{row.median('mean_steps'):.2f}",
            f"{row.median('calls_per_token'):.2f}",
            f"{row.median('rows_per_call'):.2f}",
            f"{1e3 * row.median('seconds'):.1f}",
            f"{1e3 * min(one.seconds for one in row.rounds):.1f}",
            f"{1e3 * row.median('cpu_seconds'):.1f}",
            f"{1e3 * row.median('reading_seconds'):.0f}",
            f"{figures.time_saved(row):.1%}",
            metric(row.flops_per_token),
            f"{figures.flops_saved(row):.1%}",
            _percent(figures.gain_reached(row)),
            f"{figures.calls_saved(row):.1%}",
            _percent(figures.calls_gain_reached(row)),
        )
    yield table
    yield _ratios(figures)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _ratios(figures: DecodeFigures) -> Table:
    clock = "CPU seconds" if figures.by_cpu else "seconds"
    table = Table(box=None, show_header=False)
    table.add_row("saved", f"of the {clock} without pruning; reached: over what FLOPs, or calls, promise")
    if figures.speedup_at_one_step is not None:
        table.add_row("one step per token", f"{figures.speedup_at_one_step:.2f} times faster than no pruning")
    if figures.ratio_to_transformers is not None:
        table.add_row("our vanilla", f"{figures.ratio_to_transformers:.2f} times the time of transformers")
    for row in figures.times:
        for over in (TOKEN_BY_TOKEN, OTHER):
            if (speedup := figures.speedup(row, over)) is not None:
                promised = figures.computed_speedup(row, over)
                table.add_row(row.name + over, f"{speedup:.2f} times its speed (by calls: {promised:.2f})")
    return table


def figures_json(figures: Sequence[DecodeFigures], settings: Mapping[str, Any]) -> bytes:
    """Return the figures of all batch sizes and their settings as JSON."""
    content = {
        "format": "megaponder.bench_decode/2",
        **settings,
        "by_cpu": figures[0].by_cpu,
        "batches": [_facts(one) for one in figures],
    }
    return (json.dumps(content, indent=1) + "\n").encode("ascii")


def _facts(figures: DecodeFigures) -> dict[str, Any]:
    rows = [
        asdict(row)
        | {
            "time_saved": figures.time_saved(row),
            "flops_saved": figures.flops_saved(row),
            "gain_reached": figures.gain_reached(row),
            "calls_saved": figures.calls_saved(row),
            "calls_gain_reached": figures.calls_gain_reached(row),
            "speedup_over_token_by_token": figures.speedup(row),
            "computed_speedup_over_token_by_token": figures.computed_speedup(row),
            "speedup_over_other_checkout": figures.speedup(row, OTHER),
        }
        for row in figures.times
    ]
    return {
        "batch_size": figures.batch_size,
        "speedup_at_one_step": figures.speedup_at_one_step,
        "ratio_to_transformers": figures.ratio_to_transformers,
        "rows": rows,
    }
