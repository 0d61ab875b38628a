"""The report as one self-contained HTML page: no fonts, no requests, a short script for the keyboard."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.evaluation.results import SampleToken, TextSample
from pipeline.metrics.ponder_scalars import mean_steps_of
from pipeline.report.colors import DARK, DARK_RAMP, LIGHT, LIGHT_RAMP, Rgb, line_widths, step_colors
from pipeline.report.data import ReportData
from pipeline.report.figures import Figure, loss_figure, pondering_figures, training_figures
from pipeline.report.runs import comparison_figures, have_same_text, run_rows
from pipeline.report.worth import Way, cost_figure, verdict, ways_of
from pipeline.shared.files import write_atomically
from pipeline.shared.units import render_flops

TEMPLATE = "template.html.j2"
_IDENTIFIERS = re.compile('(?<= id=")|(?<= href="#)')


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One headline number, what it is, and a line of context."""

    value: str
    name: str
    context: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownToken:
    """A token of the sample as the page shows it.

    Attributes:
        text: the piece of text, line breaks included.
        css: the class that colours it.
        ends_line: whether a visible mark precedes the line break.
        starts_generation: whether this is the first token after the prompt.
    """

    text: str
    css: str
    tooltip: str
    ends_line: bool
    starts_generation: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunView:
    """What the page shows of one run.

    Attributes:
        prefix: of the identifiers in its part of the page.
        ways: loss and cost with all steps, at the threshold, with none.
        verdict: sentences on what they differ by.
        worth: a figure of the same; None for one way.
        training: figures about the optimization.
        pondering: figures about steps.
        samples: the tokens of each text.
    """

    data: ReportData
    label: str
    prefix: str
    tiles: tuple[Tile, ...]
    ways: tuple[Way, ...]
    verdict: tuple[str, ...]
    worth: Figure | None
    loss: Figure
    training: tuple[Figure, ...]
    pondering: tuple[Figure, ...]
    samples: tuple[tuple[ShownToken, ...], ...]


def render_report(runs: Sequence[ReportData], labels: Sequence[str] = (), *, written_by: str = "") -> str:
    """Return the page.

    Args:
        runs: one, or several that are compared.
        labels: unique names of several runs.
        written_by: program, version and date, for the last line.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["flops"] = render_flops
    labels = labels or [data.name for data in runs]
    is_comparison = len(runs) > 1
    return environment.get_template(TEMPLATE).render(
        title=" and ".join(labels) if len(labels) < 3 else f"{len(labels)} runs",
        views=[
            _view(data, label, prefix=f"run{number}-" if is_comparison else "")
            for number, (data, label) in enumerate(zip(runs, labels, strict=True), start=1)
        ],
        is_comparison=is_comparison,
        rows=run_rows(runs, labels),
        figures=comparison_figures(runs, labels) if is_comparison else (),
        have_same_text=have_same_text(runs),
        written_by=written_by,
        light=LIGHT,
        dark=DARK,
        ramps=[_Ramp.of(number + 1) for number in sorted({data.num_latent_thoughts for data in runs})],
    )


def write_report(page: str, path: Path) -> None:
    """Write the page to ``path`` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ramp:
    """The colours of 0..K steps, and how thick the line below their tokens is, in pixels."""

    most: int
    light: Mapping[str, str]
    dark: Mapping[str, str]
    lines: Sequence[int]

    @classmethod
    def of(cls, num_colors: int) -> "_Ramp":
        return cls(
            most=num_colors - 1,
            light=_variables(LIGHT_RAMP, num_colors),
            dark=_variables(DARK_RAMP, num_colors),
            lines=line_widths(num_colors),
        )


def _variables(ramp: tuple[Rgb, ...], num_colors: int) -> dict[str, str]:
    return {f"s{step}": color for step, color in enumerate(step_colors(ramp, num_colors))}


def _view(data: ReportData, label: str, *, prefix: str) -> RunView:
    ways = ways_of(data)

    def own(figures: Sequence[Figure]) -> tuple[Figure, ...]:
        return tuple(_with_identifiers(figure, prefix) for figure in figures)

    return RunView(
        data=data,
        label=label,
        prefix=prefix,
        tiles=headline_tiles(data),
        ways=ways,
        verdict=verdict(ways),
        worth=_with_identifiers(cost_figure(ways), prefix) if len(ways) > 1 else None,
        loss=_with_identifiers(loss_figure(data), prefix),
        training=own(training_figures(data)),
        pondering=own(pondering_figures(data)),
        samples=tuple(shown_tokens(sample) for sample in data.samples),
    )


def _with_identifiers(figure: Figure, prefix: str) -> Figure:
    """Return a figure whose identifiers begin with a prefix: equal figures of two runs would share them."""
    charts = tuple(replace(chart, svg=Markup(_IDENTIFIERS.sub(prefix, chart.svg))) for chart in figure.charts)
    return replace(figure, charts=charts)


def headline_tiles(data: ReportData) -> tuple[Tile, ...]:
    """Return the headline numbers, most important first."""
    compare = f"unigram entropy {data.unigram_entropy:.3f}; perplexity {math.exp(data.heldout_loss):,.1f}"
    tiles = [Tile(value=f"{data.heldout_loss:.3f}", name="held-out loss, nats per token", context=compare)]
    if data.halts:
        tiles.append(
            Tile(
                value=f"{mean_steps_of(data.steps_count):.2f}",
                name="mean steps per token",
                context=f"of at most {data.num_latent_thoughts}",
            )
        )
    if data.flops_saved is not None:
        infer = f"{render_flops(data.flops_per_token_infer)} per token"
        tiles.append(
            Tile(value=f"{data.flops_saved:.0%}", name="inference FLOPs saved by halting", context=infer)
        )
    if data.speeds:
        first, last = data.speeds[0], data.speeds[-1]
        together = f"{last.batch_size} texts together: {last.milliseconds_per_token:.1f}"
        tiles.append(
            Tile(
                value=f"{first.milliseconds_per_token:.1f}",
                name="milliseconds per decoded token",
                context=together,
            )
        )
    if data.training_tokens_per_second is not None:
        train = f"{render_flops(data.flops_per_token_train)} per token"
        speed = f"{data.training_tokens_per_second:,.0f}"
        tiles.append(Tile(value=speed, name="tokens per second in training", context=train))
    return tuple(tiles)


def shown_tokens(sample: TextSample) -> tuple[ShownToken, ...]:
    """Prepare the tokens of a sample, with a tooltip each."""
    shown = []
    was_prompt = bool(sample.tokens) and sample.tokens[0].is_prompt
    for token in sample.tokens:
        shown.append(
            _shown(token, sample.num_latent_thoughts, starts_generation=was_prompt and not token.is_prompt)
        )
        was_prompt = token.is_prompt
    return tuple(shown)


def _shown(token: SampleToken, num_latent_thoughts: int, *, starts_generation: bool) -> ShownToken:
    likelihood = (
        "" if token.nll is None else f", probability {math.exp(-token.nll):.1%} ({token.nll:.2f} nats)"
    )
    origin = "prompt" if token.is_prompt else "generated"
    return ShownToken(
        text=token.piece,
        css=f"s{token.steps}",
        tooltip=f"{token.steps} of {num_latent_thoughts} steps{likelihood}, {origin}",
        ends_line=token.piece.endswith("\n"),
        starts_generation=starts_generation,
    )
