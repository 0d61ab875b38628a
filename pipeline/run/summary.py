"""What a run is, printed once at its start."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Plain values of the start-up summary.

    ``num_passes`` and ``training_rows_per_token`` are means where the number of sweeps is drawn for each
    step; FLOPs are per token, the inference figures before the first and after the last possible halt.
    ``parameters_per_rank`` holds one count per pipeline stage, whose tensor-parallel ranks hold equally many;
    ``extra_steps`` says what K is.
    """

    name: str
    method: str
    architecture: str
    extra_steps: str
    num_passes: float
    training_rows_per_token: float
    inference_rows_per_token: tuple[float, float]
    effective_depth: float
    num_layers: int
    unique_parameters: int
    non_embedding_parameters: int
    parameters_per_rank: Sequence[int]
    layout: str
    num_ranks: int
    layers_per_stage: Sequence[int]
    device: str
    precision: str
    recompute: str
    flops_per_token_train: float
    flops_per_token_recompute: float
    flops_per_token_infer: tuple[float, float]
    tokens_per_iteration: int
    total_iterations: int


def summary_rows(summary: RunSummary) -> list[tuple[str, str]]:
    """Return the lines of the summary as (name, value)."""
    tokens = summary.tokens_per_iteration * summary.total_iterations
    return [
        ("method", f"{summary.method} on {summary.architecture}"),
        ("extra steps", summary.extra_steps),
        ("passes", f"{summary.num_passes:g} through {summary.num_layers} layers per training forward"),
        ("rows per token", f"training {summary.training_rows_per_token:g}, inference {_rows(summary)}"),
        ("effective depth", f"{summary.effective_depth:g} layers"),
        (
            "parameters",
            f"{count(summary.unique_parameters)} unique ({count(summary.non_embedding_parameters)} without "
            f"embedding and head)",
        ),
        ("parameters per rank", _per_rank(summary.parameters_per_rank)),
        ("layout", _layout(summary)),
        ("device", f"{summary.device}, {summary.precision}, recompute {summary.recompute}"),
        ("FLOPs per token, training", _training_flops(summary)),
        ("FLOPs per token, inference", _span(*(metric(value) for value in summary.flops_per_token_infer))),
        (
            "data",
            f"{count(summary.tokens_per_iteration)} tokens per iteration x {summary.total_iterations:,} "
            f"iterations = {metric(tokens)} tokens",
        ),
    ]


def render_summary(summary: RunSummary) -> Table:
    """Lay the summary out as a table for a rich console."""
    table = Table(
        title=summary.name, box=SIMPLE_HEAD, show_header=False, title_justify="left", title_style="bold"
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary_rows(summary):
        table.add_row(name, value)
    return table


def count(value: int) -> str:
    """Write a whole number with its digits grouped."""
    return f"{value:,}"


def metric(value: float) -> str:
    """Write a number with three significant digits and a metric prefix, such as ``2.48 G``."""
    for limit, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            scaled = value / limit
            digits = 2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0
            return f"{scaled:.{digits}f} {prefix}"
    return f"{value:g}"


def _rows(summary: RunSummary) -> str:
    return _span(*(f"{rows:g}" for rows in summary.inference_rows_per_token))


def _span(least: str, most: str) -> str:
    return least if least == most else f"{least} to {most}, by steps taken"


def _layout(summary: RunSummary) -> str:
    ranks = f"{summary.num_ranks} {'rank' if summary.num_ranks == 1 else 'ranks'}"
    if len(summary.layers_per_stage) == 1:
        return f"{summary.layout} on {ranks}"
    stages = " + ".join(count(layers) for layers in summary.layers_per_stage)
    return f"{summary.layout} on {ranks}, {stages} layers on the pipeline stages"


def _per_rank(counts: Sequence[int]) -> str:
    if len(set(counts)) == 1:
        return count(counts[0])
    return ", ".join(count(value) for value in counts)


def _training_flops(summary: RunSummary) -> str:
    if summary.flops_per_token_recompute == 0:
        return metric(summary.flops_per_token_train)
    return f"{metric(summary.flops_per_token_train)} + {metric(summary.flops_per_token_recompute)} recomputed"
