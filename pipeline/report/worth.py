"""The first question about a run: what are its steps worth, and what do they cost?"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pipeline.metrics.ponder_scalars import mean_steps_of
from pipeline.metrics.records import WORTH_NAMES, DecodingSpeed, LossPoint
from pipeline.report.charts import HorizontalAxis, Series, line_chart
from pipeline.report.data import ReportData
from pipeline.report.figures import Figure, at_card_widths
from pipeline.shared.units import metric, render_flops

FLOPS_AXIS = HorizontalAxis(name="inference FLOPs per token", format=metric, from_zero=False)
ALONE = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A way to run the model: its held-out loss, and what a decoded token costs.

    Attributes:
        loss: nats per token.
        milliseconds: of a token of one text alone; None where decoding was not timed.
    """

    name: str
    loss: float
    mean_steps: float
    flops_per_token: float
    milliseconds: float | None


def ways_of(data: ReportData) -> tuple[Way, ...]:
    """Return the ways that were measured: all steps, at the threshold, none; or only as trained."""
    if not data.worth:
        as_trained = Way(
            name="as trained",
            loss=data.heldout_loss,
            mean_steps=mean_steps_of(data.steps_count) if data.halts else float(data.num_latent_thoughts),
            flops_per_token=data.flops_per_token_infer,
            milliseconds=_milliseconds(data.speeds),
        )
        return (as_trained,)
    return tuple(
        Way(
            name=name,
            loss=point.loss,
            mean_steps=point.mean_steps,
            flops_per_token=point.flops_per_token,
            milliseconds=_milliseconds(point.speeds),
        )
        for name, point in zip(worth_names(data.worth), data.worth, strict=True)
    )


def worth_names(points: Sequence[LossPoint]) -> tuple[str, ...]:
    """Name the points of ``worth``: a method that does not halt has none at a threshold."""
    if not points:
        return ()
    return WORTH_NAMES if len(points) == len(WORTH_NAMES) else (WORTH_NAMES[0], WORTH_NAMES[-1])


def verdict(ways: Sequence[Way]) -> tuple[str, ...]:
    """Say in sentences what the ways differ by; empty for one way."""
    if len(ways) < 2:
        return ()
    whole, none = ways[0], ways[-1]
    gain = none.loss - whole.loss
    direction = "lower" if gain >= 0 else "RAISE"
    sentences = [
        f"All {whole.mean_steps:g} steps {direction} the held-out loss by {abs(gain):.3f} nats per token, "
        f"from {none.loss:.3f} without any to {whole.loss:.3f}, and cost "
        f"{whole.flops_per_token / none.flops_per_token:.2f} times the FLOPs{_times(whole, none)}."
    ]
    if len(ways) > 2:
        sentences.append(_at_threshold(ways[1], whole))
    return tuple(sentences)


def cost_figure(ways: Sequence[Way]) -> Figure:
    """Plot the loss of the ways against what they cost."""
    points = tuple(sorted((way.flops_per_token, way.loss) for way in ways))
    caption = "Held-out loss, in nats per token, against the FLOPs of a decoded token."
    draw = partial(
        line_chart,
        [Series(name="loss", points=points, color="accent")],
        description=caption,
        over=FLOPS_AXIS,
    )
    numbers = tuple((way.name, f"{way.loss:.4f} at {render_flops(way.flops_per_token)}") for way in ways)
    return Figure(title="Loss by cost", charts=at_card_widths(draw), caption=caption, numbers=numbers)


def _milliseconds(speeds: Sequence[DecodingSpeed]) -> float | None:
    return next((speed.milliseconds_per_token for speed in speeds if speed.batch_size == ALONE), None)


def _times(way: Way, than: Way) -> str:
    if way.milliseconds is None or than.milliseconds is None:
        return ""
    return f" and {way.milliseconds / than.milliseconds:.2f} times the time"


def _at_threshold(way: Way, whole: Way) -> str:
    saved = _fewer(way.flops_per_token / whole.flops_per_token, "FLOPs")
    if way.milliseconds is not None and whole.milliseconds is not None:
        saved += f" and {_less(way.milliseconds / whole.milliseconds)} time"
    change = way.loss - whole.loss
    return (
        f"At the threshold a token takes {way.mean_steps:.2f} of {whole.mean_steps:g} steps on average: "
        f"{saved} than with all of them, for a loss that is {abs(change):.4f} "
        f"{'higher' if change >= 0 else 'lower'}."
    )


def _fewer(ratio: float, unit: str) -> str:
    return f"{abs(1 - ratio):.0%} {'fewer' if ratio <= 1 else 'MORE'} {unit}"


def _less(ratio: float) -> str:
    return f"{abs(1 - ratio):.0%} {'less' if ratio <= 1 else 'MORE'}"
