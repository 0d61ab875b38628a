"""The summary of a run, printed once at its start."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD

from pipeline.config.ponder_section import PonderSection
from pipeline.config.schema import ParallelConfig, RunConfig
from pipeline.cost.account import flops_account, mean_step
from pipeline.shared.tables import Table
from pipeline.shared.units import metric


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """Plain values of the start-up summary.

    Attributes:
        extra_steps: what K is.
        num_passes, training_rows_per_token: means, where the number of sweeps is drawn for each step.
        inference_rows_per_token, flops_per_token_infer: with the fewest and with the most steps.
        parameters_per_rank: one count per pipeline stage; its tensor-parallel ranks hold equally many.
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


def run_summary(
    config: RunConfig,
    vocab_size: int,
    *,
    parameters_per_rank: Sequence[int],
    device: str,
    fuses: bool = False,
) -> RunSummary:
    """Build the start-up summary.

    Args:
        vocab_size: the tokenizer's, without padding.
        parameters_per_rank: parameters held by each model-parallel rank, as counted on the built model.
        device: such as ``cpu (2 threads)`` or ``NVIDIA H100``.
        fuses: whether the model consists of fused functions.
    """
    account, ponder = flops_account(config, vocab_size, fuses=fuses), config.ponder
    step, parameters = mean_step(config, account), account.parameters()
    least = 0 if account.halts else ponder.num_latent_thoughts
    span = (least, ponder.num_latent_thoughts)
    return RunSummary(
        name=config.name,
        method=ponder.method.value,
        architecture=config.model.architecture,
        extra_steps=_render_steps(ponder),
        num_passes=step.num_passes,
        training_rows_per_token=step.rows_per_token,
        inference_rows_per_token=(
            account.inference_rows_per_token(span[0]),
            account.inference_rows_per_token(span[1]),
        ),
        effective_depth=account.effective_depth(),
        num_layers=config.model.num_layers,
        unique_parameters=parameters.total,
        non_embedding_parameters=parameters.non_embedding,
        parameters_per_rank=tuple(parameters_per_rank),
        layout=_render_layout(config.parallel),
        num_ranks=config.parallel.world_size,
        layers_per_stage=config.stage_layers,
        device=device,
        precision=config.training.precision,
        recompute=config.parallel.recompute,
        flops_per_token_train=step.flops.model,
        flops_per_token_recompute=step.flops.recompute,
        flops_per_token_infer=(account.inference_per_token(span[0]), account.inference_per_token(span[1])),
        tokens_per_iteration=config.training.global_batch_size * config.training.seq_length,
        total_iterations=config.training.train_iters,
    )


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
        ("parallel layout", _layout(summary)),
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
    """Return the summary as a table for a rich console."""
    table = Table(
        title=summary.name, box=SIMPLE_HEAD, show_header=False, title_justify="left", title_style="bold"
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in summary_rows(summary):
        table.add_row(name, value)
    return table


def count(value: int) -> str:
    """Format a whole number with thousands separators."""
    return f"{value:,}"


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


def _render_layout(parallel: ParallelConfig) -> str:
    return parallel.sizes


def _render_steps(ponder: PonderSection) -> str:
    if ponder.num_latent_thoughts == 0:
        return "none"
    steps = f"K = {_render_thoughts(ponder)} {ponder.method.facts.step_name}"
    if not ponder.method.has_sweeps:
        return steps
    return f"{steps}, Jacobi sweeps J = {_render_sweeps(ponder)}"


def _render_thoughts(ponder: PonderSection) -> str:
    return _render_number(ponder.num_latent_thoughts, ponder.random_latent_thoughts, ponder.thoughts_schedule)


def _render_sweeps(ponder: PonderSection) -> str:
    return _render_number(
        ponder.num_jacobi_iterations, ponder.random_jacobi_iterations, ponder.jacobi_schedule
    )


def _render_number(
    evaluated: int, drawn: tuple[int, int] | None, schedule: tuple[tuple[int, int], ...] | None
) -> str:
    if drawn is not None:
        return f"{drawn[0]} to {drawn[1]}, drawn per step ({evaluated} in evaluation)"
    if schedule is not None:
        changes = ", ".join(f"{number} from iteration {start}" for start, number in schedule)
        return f"{changes} ({evaluated} in evaluation)"
    return str(evaluated)
