"""The numbers of a report as a table for the terminal."""

import math

from rich.box import SIMPLE_HEAD

from pipeline.metrics.ponder_scalars import active_fractions, contraction, fractions, mean_steps_of
from pipeline.report.data import ReportData
from pipeline.report.figures import QUARTILE_NAMES
from pipeline.report.worth import worth_names
from pipeline.shared.tables import Table
from pipeline.shared.units import render_flops


def result_rows(data: ReportData) -> list[tuple[str, str]]:
    """Return the results as (name, value) rows."""
    rows = [
        (
            "held-out loss",
            f"{data.heldout_loss:.4f} nats/token (perplexity {math.exp(data.heldout_loss):,.1f})",
        ),
        ("unigram entropy", f"{data.unigram_entropy:.4f} nats/token"),
        ("below unigram", f"{data.unigram_entropy - data.heldout_loss:.4f} nats/token"),
    ]
    if data.training_curve:
        rows.insert(0, ("training loss, last interval", f"{data.training_curve[-1][1]:.4f} nats/token"))
    rows += [
        (f"loss with {name}", f"{point.loss:.4f}; {point.cost}")
        for name, point in zip(worth_names(data.worth), data.worth, strict=True)
    ]
    if data.halts:
        rows += _halting_rows(data)
    if data.residuals:
        rows.append(("Jacobi residual by sweep", _residuals(data.residuals)))
    if data.training_tokens_per_second is not None:
        rows.append(("training speed", f"{data.training_tokens_per_second:,.0f} tokens/s"))
    rows += [(f"decoding {speed.batch_size} at once", speed.summary) for speed in data.speeds]
    rows.append(("checkpoint", data.checkpoint))
    return rows


def render_results(data: ReportData) -> Table:
    """Return the results as a table for a rich console."""
    table = Table(title=f"{data.name}: results", box=SIMPLE_HEAD, show_header=False, title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in result_rows(data):
        table.add_row(name, value)
    return table


def _halting_rows(data: ReportData) -> list[tuple[str, str]]:
    shares = fractions(data.steps_count)
    pruned = [1 - active for active in active_fractions(data.steps_count)][1:]
    rows = [
        ("mean steps per token", f"{mean_steps_of(data.steps_count):.3f} of {data.num_latent_thoughts}"),
        ("tokens by steps 0, 1, ...", "  ".join(f"{share:.1%}" for share in shares)),
        ("pruned at step 1, 2, ...", "  ".join(f"{share:.1%}" for share in pruned)),
    ]
    quartiles = zip(QUARTILE_NAMES, data.loss_quartiles, strict=False)
    rows += [(f"mean steps, {name}", f"{quartile.mean_steps:.3f}") for name, quartile in quartiles]
    if data.flops_saved is not None:
        spent = render_flops(data.flops_per_token_infer)
        rows.append(("inference FLOPs saved", f"{data.flops_saved:.1%} ({spent} per token)"))
    return rows


def _residuals(residuals: tuple[float, ...]) -> str:
    factor = contraction(residuals)
    written = "  ".join(f"{residual:.4f}" for residual in residuals)
    return written if factor is None else f"{written} (contraction {factor:.3f})"
