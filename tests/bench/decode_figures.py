"""Time and FLOPs saved in decoding, as a table and as JSON."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pipeline.shared.units import metric
from tests.bench.decode import ONE_STEP, TOKEN_BY_TOKEN, UNPRUNED, VANILLA, DecodeTime
from tests.bench.decode_transformers import THEIRS

# FLOPs that differ by less are not worth a ratio.
SMALLEST_SAVING = 0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeFigures:
    """Times of all ways, and the ratios between them.

    Attributes:
        times: the first is the baseline of the others.
        speedup_at_one_step: speed of one step per token relative to no pruning; None with K = 0.
        ratio_to_transformers: time of our vanilla decoding over that of transformers; None if not measured.
    """

    times: tuple[DecodeTime, ...]
    speedup_at_one_step: float | None
    ratio_to_transformers: float | None

    def time_saved(self, row: DecodeTime) -> float:
        """Return the share of time that a way saves relative to no pruning."""
        return 1 - row.seconds_per_token / self.times[0].seconds_per_token

    def gain_reached(self, row: DecodeTime) -> float | None:
        """Return the share of time that a way saves over the share of FLOPs; None where it saves none."""
        saved = self.flops_saved(row)
        return self.time_saved(row) / saved if saved > SMALLEST_SAVING else None

    def speedup(self, row: DecodeTime) -> float | None:
        """Return the speed relative to token by token; None where that was not measured."""
        for other in self.times:
            if other.name == row.name + TOKEN_BY_TOKEN:
                return other.seconds_per_token / row.seconds_per_token
        return None

    def flops_saved(self, row: DecodeTime) -> float:
        """Return the share of FLOPs that a way saves relative to no pruning."""
        return 1 - row.flops_per_token / self.times[0].flops_per_token


def decode_figures(times: Sequence[DecodeTime]) -> DecodeFigures:
    """Return the times with their ratios."""
    seconds = {row.name: row.seconds_per_token for row in times}

    def ratio(first: str, second: str) -> float | None:
        return seconds[first] / seconds[second] if first in seconds and second in seconds else None

    return DecodeFigures(
        times=tuple(times),
        speedup_at_one_step=ratio(UNPRUNED, ONE_STEP),
        ratio_to_transformers=ratio(VANILLA, THEIRS),
    )


def render_figures(figures: DecodeFigures, *, title: str) -> Iterator[Table]:
    """Yield a table of the times and one of the two ratios."""
    table = Table(title=title, box=SIMPLE_HEAD)
    for column in (
        "decoding",
        "steps",
        "calls/token",
        "ms/token",
        "fastest",
        "ms saved",
        "time saved",
        "FLOPs/token",
        "FLOPs saved",
        "gain reached",
        "speedup",
    ):
        table.add_column(column, justify="left" if column == "decoding" else "right")
    base = figures.times[0]
    for row in figures.times:
        table.add_row(
            row.name,
            f"{row.mean_steps:.2f}",
            "" if row.calls_per_token is None else f"{row.calls_per_token:.2f}",
            f"{1e3 * row.seconds_per_token:.2f}",
            f"{1e3 * min(row.seconds_of_rounds):.2f}",
            f"{1e3 * (base.seconds_per_token - row.seconds_per_token):.2f}",
            f"{figures.time_saved(row):.1%}",
            metric(row.flops_per_token),
            f"{figures.flops_saved(row):.1%}",
            "" if (gain := figures.gain_reached(row)) is None else f"{gain:.0%}",
            "" if (speedup := figures.speedup(row)) is None else f"{speedup:.2f}",
        )
    yield table
    ratios = Table(box=None, show_header=False)
    if figures.speedup_at_one_step is not None:
        ratios.add_row(
            "one step per token", f"{figures.speedup_at_one_step:.2f} times faster than no pruning"
        )
    if figures.ratio_to_transformers is not None:
        ratios.add_row("our vanilla", f"{figures.ratio_to_transformers:.2f} times the time of transformers")
    yield ratios


def figures_json(figures: DecodeFigures, settings: Mapping[str, Any]) -> bytes:
    """Return the figures and their settings as JSON."""
    rows = [
        asdict(row)
        | {
            "time_saved": figures.time_saved(row),
            "flops_saved": figures.flops_saved(row),
            "gain_reached": figures.gain_reached(row),
            "speedup_over_token_by_token": figures.speedup(row),
        }
        for row in figures.times
    ]
    content = {
        "format": "megaponder.bench_decode/1",
        **settings,
        "speedup_at_one_step": figures.speedup_at_one_step,
        "ratio_to_transformers": figures.ratio_to_transformers,
        "rows": rows,
    }
    return (json.dumps(content, indent=1) + "\n").encode("ascii")
