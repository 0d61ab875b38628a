"""The figures of the report: what each shows, in a drawing, a sentence and a table. Pure."""

from collections.abc import Callable
from dataclasses import dataclass

from markupsafe import Markup

from pipeline.metrics.ponder_scalars import active_fractions, contraction, fractions, mean_steps_of
from pipeline.report.charts import Bar, Reference, Series, bar_chart, line_chart
from pipeline.report.data import Points, ReportData

QUARTILE_NAMES = ("easiest quarter", "second", "third", "hardest quarter")
WIDE = (1080.0, 330.0)
PERCENT = "{:.1%}".format
WHOLE_PERCENT = "{:.0%}".format


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing with its heading, a sentence on what is seen, and its numbers as (name, value) rows."""

    title: str
    drawing: Markup
    says: str
    numbers: tuple[tuple[str, str], ...]


def loss_figure(data: ReportData) -> Figure:
    """Loss over training, on training and held-out text, against the unigram entropy."""
    lines = [
        Series(name="training", points=data.training_curve, css="c1"),
        Series(name="held-out", points=data.heldout_curve, css="c2"),
    ]
    below = data.unigram_entropy - data.heldout_loss
    relation = "below" if below >= 0 else "above"
    says = (
        f"The final held-out loss is {data.heldout_loss:.3f} nats per token, {abs(below):.3f} {relation} the "
        f"unigram entropy of {data.unigram_entropy:.3f}, the best any model without context can reach."
    )
    drawing = line_chart(
        [line for line in lines if line.points],
        description=f"Loss in nats per token over iterations. {says}",
        references=[Reference(name="unigram entropy", value=data.unigram_entropy)],
        size=WIDE,
    )
    return Figure(
        title="Loss, nats per token", drawing=drawing, says=says, numbers=_last_values(lines, ".4f")
    )


def histogram_figure(data: ReportData) -> Figure:
    """Share of held-out tokens by number of steps."""
    shares = fractions(data.steps_count)
    bars = [Bar(name=str(step), value=share, css=f"s{step}") for step, share in enumerate(shares)]
    says = (
        f"Tokens take {mean_steps_of(data.steps_count):.2f} of {data.num_latent_thoughts} steps on average; "
        f"{1 - shares[-1]:.1%} halt early."
    )
    counts = zip(data.steps_count, shares, strict=True)
    numbers = tuple((f"{step} steps", f"{n:,} tokens, {share:.1%}") for step, (n, share) in enumerate(counts))
    return _percent_bars("Tokens by steps taken", bars, says, "steps", numbers)


def pruned_figure(data: ReportData) -> Figure:
    """Share of held-out tokens that skip each step."""
    pruned = [1 - active for active in active_fractions(data.steps_count)][1:]
    bars = [
        Bar(name=f"step {step}", value=share, css=f"s{step}") for step, share in enumerate(pruned, start=1)
    ]
    says = (
        f"Of the held-out tokens, {pruned[0]:.1%} skip step 1 and everything after it; "
        f"step {len(pruned)} is skipped by {pruned[-1]:.1%}."
    )
    numbers = _numbers(bars, PERCENT)
    return _percent_bars("Pruned fraction by step", bars, says, "ponder step", numbers, top=1.0)


def quartile_figure(data: ReportData) -> Figure:
    """Mean steps of the held-out tokens, by how hard they were to predict."""
    rows = list(zip(QUARTILE_NAMES, data.loss_quartiles, strict=True))
    bars = [Bar(name=name, value=quartile.mean_steps, css="c1") for name, quartile in rows]
    easiest, hardest = data.loss_quartiles[0].mean_steps, data.loss_quartiles[-1].mean_steps
    says = f"The hardest quarter of tokens takes {hardest:.2f} steps, the easiest {easiest:.2f}."
    numbers = tuple(
        (
            f"{name}: {quartile.lowest_nll:.2f} to {quartile.highest_nll:.2f} nats",
            f"{quartile.mean_steps:.3f} steps, {quartile.num_tokens:,} tokens",
        )
        for name, quartile in rows
    )
    return _bars(
        "Mean steps by the token's own loss", bars, says, "tokens by their loss", "{:.2f}".format, numbers
    )


def mean_steps_figure(data: ReportData) -> Figure:
    """Mean steps per token over training."""
    lines = [Series(name="mean steps", points=data.mean_steps_curve, css="c3")]
    says = (
        f"From {data.mean_steps_curve[0][1]:.2f} to {data.mean_steps_curve[-1][1]:.2f} steps per training "
        f"token, of at most {data.num_latent_thoughts}."
    )
    drawing = line_chart(
        lines,
        description=f"Mean steps per token over iterations. {says}",
        from_zero=True,
        top=float(data.num_latent_thoughts),
        label_width=96,
    )
    numbers = _last_values(lines, ".3f")
    return Figure(title="Mean steps during training", drawing=drawing, says=says, numbers=numbers)


def pruned_curves_figure(data: ReportData) -> Figure:
    """Pruned fraction of each step over training."""
    lines = [
        Series(name=f"step {step}", points=points, css=f"c{(step - 1) % 4 + 1}")
        for step, points in enumerate(data.pruned_curves, start=1)
    ]
    says = "Share of training tokens that skip each step, as training goes on."
    drawing = line_chart(
        lines, description=says, from_zero=True, top=1.0, write_tick=WHOLE_PERCENT, label_width=66
    )
    numbers = _last_values(lines, ".1%")
    return Figure(title="Pruned fraction during training", drawing=drawing, says=says, numbers=numbers)


def steps_loss_figure(data: ReportData) -> Figure:
    """Mean held-out loss by number of steps taken."""
    bars = [
        Bar(name=str(step), value=loss, css=f"s{step}")
        for step, loss in enumerate(data.nll_by_steps)
        if loss is not None
    ]
    says = "Mean held-out loss, in nats, of the tokens that took this many steps."
    return _bars("Loss by steps taken", bars, says, "steps", "{:.2f}".format, _numbers(bars, "{:.4f}".format))


def steps_allowed_figure(data: ReportData) -> Figure:
    """Held-out loss with fewer steps."""
    bars = [Bar(name=f"{most:.0f}", value=loss, css=f"s{most:.0f}") for most, loss in data.steps_allowed]
    (_, first), (most, last) = data.steps_allowed[0], data.steps_allowed[-1]
    says = (
        f"Held-out loss, in nats, if no token may take more than so many steps: {first:.4f} without any, "
        f"{last:.4f} with {most:.0f}."
    )
    numbers = _numbers(bars, "{:.4f}".format)
    return _bars("Loss by steps allowed", bars, says, "most steps per token", "{:.3f}".format, numbers)


def residual_figure(data: ReportData) -> Figure:
    """Jacobi residual after each sweep."""
    bars = [
        Bar(name=f"sweep {index}", value=value, css="c4")
        for index, value in enumerate(data.residuals, start=1)
    ]
    factor = contraction(data.residuals)
    says = "Relative change of the latent thoughts in each sweep"
    says += "." if factor is None else f"; each sweep shrinks it to {factor:.2f} times."
    return _bars(
        "Jacobi residual by sweep",
        bars,
        says,
        "Jacobi sweep",
        "{:.3g}".format,
        _numbers(bars, "{:.5g}".format),
    )


def all_figures(data: ReportData) -> tuple[Figure, ...]:
    """Return the figures below the loss curve for which there is something to show."""
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


def _percent_bars(
    title: str,
    bars: list[Bar],
    says: str,
    axis: str,
    numbers: tuple[tuple[str, str], ...],
    top: float | None = None,
) -> Figure:
    drawing = bar_chart(
        bars, description=f"{title}. {says}", axis=axis, write=PERCENT, write_tick=WHOLE_PERCENT, top=top
    )
    return Figure(title=title, drawing=drawing, says=says, numbers=numbers)


def _bars(
    title: str,
    bars: list[Bar],
    says: str,
    axis: str,
    write: Callable[[float], str],
    numbers: tuple[tuple[str, str], ...],
) -> Figure:
    drawing = bar_chart(bars, description=f"{title}. {says}", axis=axis, write=write)
    return Figure(title=title, drawing=drawing, says=says, numbers=numbers)


def _numbers(bars: list[Bar], write: Callable[[float], str]) -> tuple[tuple[str, str], ...]:
    return tuple((bar.name, write(bar.value)) for bar in bars)


def _last_values(lines: list[Series], form: str) -> tuple[tuple[str, str], ...]:
    return tuple((f"{line.name}, last value", _last(line.points, form)) for line in lines if line.points)


def _last(points: Points, form: str) -> str:
    iteration, value = points[-1]
    return f"{value:{form}} at iteration {iteration:,.0f}"
