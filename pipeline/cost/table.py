"""A run plan as tables for a console."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD

from pipeline.cost.memory import RankMemory
from pipeline.cost.peaks import GIB
from pipeline.cost.plan import RunPlan
from pipeline.cost.suggest import Suggestion
from pipeline.shared.tables import Table
from pipeline.shared.units import metric

MOST_PASSES_SHOWN = 12
LEAST_SHARE_SHOWN = 0.005
# For people, by the names of :class:`pipeline.cost.roofline.StepTime`.
_PARTS = {
    "products": "products",
    "attention": "attention",
    "elementwise": "other work of layers",
    "vocabulary": "head and mixtures",
    "decider": "router or gates",
    "launches": "waiting for launches",
    "exchange": "exchange",
    "bubble": "bubble",
    "update": "update",
}


def render_memory(plan: RunPlan) -> Table:
    """Return a table of the memory of a rank of every stage by part, in GiB."""
    table = Table(
        title=f"{plan.name}: GiB of a rank",
        min_width=60,
        box=SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
    )
    table.add_column("part", style="cyan")
    for stage in plan.stages:
        table.add_column("rank" if len(plan.stages) == 1 else f"stage {stage.stage}", justify="right")
    parts = [_parts(plan, stage) for stage in plan.stages]
    for row in zip(*parts, strict=True):
        table.add_row(row[0][0], *(f"{value / GIB:.2f}" for _, value in row))
    table.add_row("fullest moment", *(stage.fullest.name for stage in plan.stages))
    return table


def render_plan(plan: RunPlan) -> Table:
    """Return a table of everything else."""
    device = plan.assumptions.device
    table = Table(box=SIMPLE_HEAD, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    rows = [
        (
            "verdict",
            f"{verdict}: {plan.needed_bytes / GIB:.1f} of {device.memory_bytes / GIB:.1f} GiB "
            f"of a {device.name}",
        ),
        ("parallel layout", f"{plan.layout}, {plan.num_ranks} devices"),
        (
            "micro-batch",
            f"{plan.micro_batch_size} sequences x {plan.num_micro_batches} per iteration, recompute "
            f"{plan.recompute}",
        ),
        ("passes", f"{plan.num_passes:g} per training forward"),
        (
            "rows per token",
            f"{plan.rows_per_token:g} forward, {plan.gradient_rows_per_token:g} backward",
        ),
        (
            "FLOPs per token, training",
            f"{metric(plan.training_flops.model)} + {metric(plan.training_flops.recompute)} recomputed",
        ),
        *_update(plan),
        ("FLOPs per token, inference", _inference(plan)),
        ("speed", _speed(plan)),
        *_time(plan),
        ("received by a rank", _traffic(plan)),
        ("duration", _duration(plan)),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def render_suggestions(suggestions: Sequence[Suggestion]) -> Table:
    """Return a table of ways to make a run fit."""
    table = Table(title="what fits", box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.add_column("time", justify="right")
    table.add_column("GiB", justify="right")
    table.add_column("settings", overflow="fold")
    for suggestion in suggestions:
        table.add_row(
            f"{suggestion.relative_cost:.2f} x",
            f"{suggestion.plan.needed_bytes / GIB:.1f}",
            " ".join(suggestion.overrides) or "unchanged",
        )
    return table


def _parts(plan: RunPlan, memory: RankMemory) -> list[tuple[str, float]]:
    state, fullest = memory.state, memory.fullest
    by_pass = list(fullest.by_pass) + [0.0] * (
        max(len(s.fullest.by_pass) for s in plan.stages) - len(fullest.by_pass)
    )
    shown = [(f"activations of pass {index}", value) for index, value in enumerate(by_pass)]
    if len(shown) > MOST_PASSES_SHOWN:
        shown = [("activations of all passes", fullest.activations)]
    return [
        ("weights", state.weights),
        ("gradients", state.gradients),
        ("optimizer: main weights", state.main_weights),
        ("optimizer: moments", state.moments),
        *shown,
        ("logits and mixtures", fullest.vocabulary),
        ("current layer", fullest.working),
        ("sums of weight gradients", fullest.gradient_sums),
        ("communication", fullest.communication),
        ("reserve", plan.assumptions.reserve_bytes),
        ("total", memory.peak + plan.assumptions.reserve_bytes),
    ]


def _traffic(plan: RunPlan) -> str:
    """Format the bytes of an iteration by axis, without axes that a run does not have."""
    axes = {axis: getattr(plan.traffic, axis) for axis in ("tensor", "context", "pipeline", "data")}
    shown = [f"{axis} {value / GIB:,.2f}" for axis, value in axes.items() if value]
    return f"{', '.join(shown)} GiB per iteration" if shown else "nothing"


def _speed(plan: RunPlan) -> str:
    speed = plan.tokens_per_second
    if speed is None:
        return f"unknown, as the peak of a {plan.assumptions.device.name} is"
    assert plan.mfu is not None, "a speed follows from it"
    assert plan.hfu is not None, "a speed follows from it"
    source = "assumed" if plan.step_time is None else "estimated"
    return (
        f"{speed:,.0f} tokens/s, {speed / plan.num_ranks:,.0f} per device, at {plan.mfu:.0%} MFU, {source} "
        f"({plan.hfu:.0%} HFU)"
    )


def _time(plan: RunPlan) -> list[tuple[str, str]]:
    """Format the parts of a step, largest first, without those below half a percent."""
    time = plan.step_time
    if time is None:
        return []
    shares = sorted(((seconds / time.total, name) for name, seconds in time.parts.items()), reverse=True)
    shown = ", ".join(f"{_PARTS[name]} {share:.0%}" for share, name in shares if share >= LEAST_SHARE_SHOWN)
    return [("time of a step", f"{time.total:,.3g} s: {shown}")]


def _duration(plan: RunPlan) -> str:
    tokens = f"{metric(plan.tokens)} tokens"
    return tokens if plan.days is None else f"{plan.days:,.1f} days for {tokens}"


def _update(plan: RunPlan) -> list[tuple[str, str]]:
    if not plan.update_flops:
        return []
    return [("FLOPs per update, Muon", f"{metric(plan.update_flops)} on the device with most")]


def _inference(plan: RunPlan) -> str:
    least, most = (metric(value) for value in plan.inference_flops)
    span = most if least == most else f"{least} to {most}, by steps taken"
    if plan.expected_inference_flops is None:
        return span
    return (
        f"{metric(plan.expected_inference_flops)} expected at {plan.assumptions.mean_steps:g} steps ({span})"
    )
