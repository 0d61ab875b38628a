"""The figures about one run: a chart, a sentence and a table each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Protocol

from markupsafe import Markup

from pipeline.metrics.ponder_scalars import active_fractions, contraction, fractions, mean_steps_of
from pipeline.report.charts import CARD, NARROW, WIDE, Bar, Reference, Series, Size, bar_chart, line_chart
from pipeline.report.colors import curve_role
from pipeline.report.data import Points, ReportData

QUARTILE_NAMES = ("easiest quarter", "second", "third", "hardest quarter")
PERCENT = "{:.1%}".format
WHOLE_PERCENT = "{:.0%}".format


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A drawing and the classes of the widths of a page that it is for: wide, middle, narrow."""

    widths: str
    svg: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Charts of different widths, with a heading, a sentence on what they show, and (name, value) rows."""

    title: str
    charts: tuple[Chart, ...]
    caption: str
    numbers: tuple[tuple[str, str], ...]


class Drawing(Protocol):
    """A chart that can be drawn in any size."""

    def __call__(self, *, size: Size) -> Markup:
        """Draw it, with so many pixels in width and height."""


def at_card_widths(draw: Drawing) -> tuple[Chart, ...]:
    """Draw a chart that has half of a wide page."""
    return (Chart(widths="wide middle", svg=draw(size=CARD)), Chart(widths="narrow", svg=draw(size=NARROW)))


def at_page_widths(draw: Drawing) -> tuple[Chart, ...]:
    """Draw a chart that has the whole width of any page."""
    return (
        Chart(widths="wide", svg=draw(size=WIDE)),
        Chart(widths="middle", svg=draw(size=CARD)),
        Chart(widths="narrow", svg=draw(size=NARROW)),
    )


def loss_figure(data: ReportData) -> Figure:
    """Plot the loss over training, on training and held-out text, and the unigram entropy."""
    lines = [
        Series(name="training", points=data.training_curve, color="c1"),
        Series(name="held-out", points=data.heldout_curve, color="c2"),
    ]
    below = data.unigram_entropy - data.heldout_loss
    relation = "below" if below >= 0 else "above"
    caption = (
        f"The final held-out loss is {data.heldout_loss:.3f} nats per token, {abs(below):.3f} {relation} the "
        f"unigram entropy of {data.unigram_entropy:.3f}, the best any model without context can reach."
    )
    draw = partial(
        line_chart,
        [line for line in lines if line.points],
        description=f"Loss in nats per token over iterations. {caption}",
        references=[Reference(name="unigram entropy", value=data.unigram_entropy)],
    )
    return Figure(
        title="Loss, nats per token",
        charts=at_page_widths(draw),
        caption=caption,
        numbers=last_values(lines, ".4f"),
    )


def learning_rate_figure(data: ReportData) -> Figure:
    """Plot the learning rate over training, and that of the router or gates where it is another."""
    lines = [Series(name="learning rate", points=data.learning_rate_curve, color="c4")]
    if data.decoupled_rate_curve and data.decoupled_rate_curve != data.learning_rate_curve:
        lines.append(Series(name="router or gates", points=data.decoupled_rate_curve, color="c5"))
    highest = max(rate for _, rate in data.learning_rate_curve)
    caption = f"At most {highest:.3g}, and {data.learning_rate_curve[-1][1]:.3g} at the end."
    draw = partial(line_chart, lines, description=f"Learning rate over iterations. {caption}", from_zero=True)
    return Figure(
        title="Learning rate",
        charts=at_card_widths(draw),
        caption=caption,
        numbers=last_values(lines, ".4g"),
    )


def grad_norm_figure(data: ReportData) -> Figure:
    """Plot the norm of the gradient over training, before clipping."""
    lines = [Series(name="gradient norm", points=_positive(data.grad_norm_curve), color="c6")]
    norms = [norm for _, norm in data.grad_norm_curve]
    caption = f"Before clipping; median {median(norms):.3g}, largest {max(norms):.3g}."
    draw = partial(
        line_chart, lines, description=f"Norm of the gradient over iterations. {caption}", logarithmic=True
    )
    return Figure(
        title="Gradient norm", charts=at_card_widths(draw), caption=caption, numbers=last_values(lines, ".4g")
    )


def histogram_figure(data: ReportData) -> Figure:
    """Plot the share of held-out tokens by number of steps."""
    shares = fractions(data.steps_count)
    bars = [Bar(name=str(step), value=share, color=f"s{step}") for step, share in enumerate(shares)]
    caption = (
        f"Tokens take {mean_steps_of(data.steps_count):.2f} of {data.num_latent_thoughts} steps on average; "
        f"{1 - shares[-1]:.1%} halt early."
    )
    counts = zip(data.steps_count, shares, strict=True)
    numbers = tuple((f"{step} steps", f"{n:,} tokens, {share:.1%}") for step, (n, share) in enumerate(counts))
    return _bar_figure(
        "Tokens by steps taken",
        bars,
        caption=caption,
        numbers=numbers,
        axis="steps",
        format_value=PERCENT,
        format_tick=WHOLE_PERCENT,
    )


def pruned_figure(data: ReportData) -> Figure:
    """Plot the share of held-out tokens that skip each step."""
    pruned = [1 - active for active in active_fractions(data.steps_count)][1:]
    bars = [Bar(name=str(step), value=share, color=f"s{step}") for step, share in enumerate(pruned, start=1)]
    caption = (
        f"Of the held-out tokens, {pruned[0]:.1%} skip step 1 and all later ones; "
        f"step {len(pruned)} is skipped by {pruned[-1]:.1%}."
    )
    return _bar_figure(
        "Pruned fraction by step",
        bars,
        caption=caption,
        numbers=_numbers(bars, PERCENT, prefix="step "),
        axis="ponder step",
        format_value=PERCENT,
        format_tick=WHOLE_PERCENT,
        top=1.0,
    )


def quartile_figure(data: ReportData) -> Figure:
    """Plot the mean steps of the held-out tokens, by how hard they were to predict."""
    rows = list(zip(QUARTILE_NAMES, data.loss_quartiles, strict=True))
    bars = [Bar(name=name, value=quartile.mean_steps, color="c1") for name, quartile in rows]
    easiest, hardest = data.loss_quartiles[0].mean_steps, data.loss_quartiles[-1].mean_steps
    caption = f"The hardest quarter of tokens takes {hardest:.2f} steps, the easiest {easiest:.2f}."
    numbers = tuple(
        (
            f"{name}: {quartile.lowest_nll:.2f} to {quartile.highest_nll:.2f} nats",
            f"{quartile.mean_steps:.3f} steps, {quartile.num_tokens:,} tokens",
        )
        for name, quartile in rows
    )
    return _bar_figure(
        "Mean steps by the token's own loss",
        bars,
        caption=caption,
        numbers=numbers,
        axis="tokens by their loss",
        format_value="{:.2f}".format,
    )


def mean_steps_figure(data: ReportData) -> Figure:
    """Plot the mean steps per token over training."""
    lines = [Series(name="mean steps", points=data.mean_steps_curve, color="c3")]
    caption = (
        f"From {data.mean_steps_curve[0][1]:.2f} to {data.mean_steps_curve[-1][1]:.2f} steps per training "
        f"token, of at most {data.num_latent_thoughts}."
    )
    draw = partial(
        line_chart,
        lines,
        description=f"Mean steps per token over iterations. {caption}",
        from_zero=True,
        top=float(data.num_latent_thoughts),
    )
    return Figure(
        title="Mean steps during training",
        charts=at_card_widths(draw),
        caption=caption,
        numbers=last_values(lines, ".3f"),
    )


def pruned_curves_figure(data: ReportData) -> Figure:
    """Plot the pruned fraction of each step over training."""
    lines = [
        Series(name=f"step {step}", points=points, color=curve_role(step - 1))
        for step, points in enumerate(data.pruned_curves, start=1)
    ]
    caption = "Share of training tokens that skip each step, over the course of training."
    draw = partial(
        line_chart,
        lines,
        description=caption,
        from_zero=True,
        top=1.0,
        format_tick=WHOLE_PERCENT,
        format_value=PERCENT,
    )
    return Figure(
        title="Pruned fraction during training",
        charts=at_card_widths(draw),
        caption=caption,
        numbers=last_values(lines, ".1%"),
    )


def steps_loss_figure(data: ReportData) -> Figure:
    """Plot the mean held-out loss by number of steps taken."""
    bars = [
        Bar(name=str(step), value=loss, color=f"s{step}")
        for step, loss in enumerate(data.nll_by_steps)
        if loss is not None
    ]
    caption = "Mean held-out loss, in nats, of the tokens that took this many steps."
    return _bar_figure(
        "Loss by steps taken",
        bars,
        caption=caption,
        numbers=_numbers(bars, "{:.4f}".format),
        axis="steps",
        format_value="{:.2f}".format,
    )


def steps_allowed_figure(data: ReportData) -> Figure:
    """Plot the held-out loss with fewer steps."""
    bars = [Bar(name=f"{most:.0f}", value=loss, color=f"s{most:.0f}") for most, loss in data.steps_allowed]
    (_, first), (most, last) = data.steps_allowed[0], data.steps_allowed[-1]
    caption = (
        f"Held-out loss, in nats, with a limit on the steps per token: {first:.4f} without any steps, "
        f"{last:.4f} with {most:.0f}."
    )
    return _bar_figure(
        "Loss by steps allowed",
        bars,
        caption=caption,
        numbers=_numbers(bars, "{:.4f}".format),
        axis="maximum steps per token",
        format_value="{:.3f}".format,
    )


def residual_figure(data: ReportData) -> Figure:
    """Plot the Jacobi residual after each sweep."""
    bars = [
        Bar(name=str(index), value=value, color="c4") for index, value in enumerate(data.residuals, start=1)
    ]
    factor = contraction(data.residuals)
    caption = "Relative change of the latent thoughts in each sweep"
    caption += "." if factor is None else f"; each sweep multiplies it by {factor:.2f}."
    return _bar_figure(
        "Jacobi residual by sweep",
        bars,
        caption=caption,
        numbers=_numbers(bars, "{:.5g}".format, prefix="sweep "),
        axis="Jacobi sweep",
        format_value="{:.3g}".format,
    )


def training_figures(data: ReportData) -> tuple[Figure, ...]:
    """Return the figures about the optimization, without those for which the run has no data."""
    figures: list[tuple[bool, Callable[[ReportData], Figure]]] = [
        (bool(data.learning_rate_curve), learning_rate_figure),
        (bool(_positive(data.grad_norm_curve)), grad_norm_figure),
    ]
    return tuple(make(data) for shown, make in figures if shown)


def pondering_figures(data: ReportData) -> tuple[Figure, ...]:
    """Return the figures about steps, without those for which the run has no data."""
    figures: list[tuple[bool, Callable[[ReportData], Figure]]] = [
        (data.halts, histogram_figure),
        (bool(data.loss_quartiles), quartile_figure),
        (data.halts and data.num_latent_thoughts > 0, pruned_figure),
        (bool(data.pruned_curves), pruned_curves_figure),
        (bool(data.mean_steps_curve), mean_steps_figure),
        (any(loss is not None for loss in data.nll_by_steps), steps_loss_figure),
        (len(data.steps_allowed) > 1, steps_allowed_figure),
        (bool(data.residuals), residual_figure),
    ]
    return tuple(make(data) for shown, make in figures if shown)


def _bar_figure(
    title: str,
    bars: list[Bar],
    *,
    caption: str,
    numbers: tuple[tuple[str, str], ...],
    axis: str,
    format_value: Callable[[float], str],
    format_tick: Callable[[float], str] = "{:g}".format,
    top: float | None = None,
) -> Figure:
    draw = partial(
        bar_chart,
        bars,
        description=f"{title}. {caption}",
        axis=axis,
        format_value=format_value,
        format_tick=format_tick,
        top=top,
    )
    return Figure(title=title, charts=at_card_widths(draw), caption=caption, numbers=numbers)


def _numbers(
    bars: list[Bar], write: Callable[[float], str], *, prefix: str = ""
) -> tuple[tuple[str, str], ...]:
    return tuple((f"{prefix}{bar.name}", write(bar.value)) for bar in bars)


def last_values(lines: list[Series], form: str) -> tuple[tuple[str, str], ...]:
    """Return a row with the last value of each line, for the table below a chart over iterations."""
    return tuple((f"{line.name}, last value", _last(line.points, form)) for line in lines if line.points)


def _positive(points: Points) -> Points:
    """Return the points that a logarithmic axis can show."""
    return tuple((place, value) for place, value in points if value > 0)


def _last(points: Points, form: str) -> str:
    iteration, value = points[-1]
    return f"{value:{form}} at iteration {iteration:,.0f}"
