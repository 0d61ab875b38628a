"""The report as one self-contained HTML page: no scripts, no fonts, no requests."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.evaluation.results import SampleToken, TextSample
from pipeline.metrics.ponder_scalars import mean_steps_of
from pipeline.metrics.records import WORTH_NAMES
from pipeline.report.colors import DARK, DARK_RAMP, LIGHT, LIGHT_RAMP, Rgb, step_colors
from pipeline.report.data import ReportData
from pipeline.report.figures import all_figures, loss_figure
from pipeline.run.summary import metric
from pipeline.shared.files import write_atomically

TEMPLATE = "template.html.j2"


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


def render_report(data: ReportData) -> str:
    """Return the page."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    num_colors = data.num_latent_thoughts + 1
    return environment.get_template(TEMPLATE).render(
        data=data,
        tiles=headline_tiles(data),
        loss=loss_figure(data),
        figures=all_figures(data),
        tokens=shown_tokens(data.sample) if data.sample else (),
        light=_variables(LIGHT, LIGHT_RAMP, num_colors),
        dark=_variables(DARK, DARK_RAMP, num_colors),
        step_names=[f"s{step}" for step in range(num_colors)],
    )


def write_report(data: ReportData, path: Path) -> None:
    """Write the page to ``path`` atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, render_report(data))


def _variables(colors: Mapping[str, str], ramp: tuple[Rgb, ...], num_colors: int) -> dict[str, str]:
    steps = {f"s{step}": color for step, color in enumerate(step_colors(ramp, num_colors))}
    return {**colors, **steps}


def headline_tiles(data: ReportData) -> tuple[Tile, ...]:
    """Return the headline numbers, most important first."""
    compare = f"unigram entropy {data.unigram_entropy:.3f}; perplexity {math.exp(data.heldout_loss):,.1f}"
    tiles = [Tile(value=f"{data.heldout_loss:.3f}", name="held-out loss, nats per token", context=compare)]
    tiles += [
        Tile(value=f"{point.loss:.3f}", name=f"the same with {name}", context=point.cost)
        for name, point in zip(WORTH_NAMES, data.worth, strict=False)
    ]
    if data.halts:
        tiles.append(
            Tile(
                value=f"{mean_steps_of(data.steps_count):.2f}",
                name="mean steps per token",
                context=f"of at most {data.num_latent_thoughts}",
            )
        )
    if data.flops_saved is not None:
        infer = f"{metric(data.flops_per_token_infer)}FLOPs per token"
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
        train = f"{metric(data.flops_per_token_train)}FLOPs per token"
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
