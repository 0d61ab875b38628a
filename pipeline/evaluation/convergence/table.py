"""Convergence on the terminal."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD

from pipeline.evaluation.convergence.result import Convergence, Reading
from pipeline.shared.tables import Table

MOST_ROWS = 16


def render_convergence(found: Convergence) -> Iterator[Table]:
    """Yield the tables of residuals, losses, needed sweeps and ways to read prompts."""
    yield _residuals(found)
    yield _needed(found)
    yield _losses(found)
    yield _readings(found)


def position_bins(num_positions: int) -> list[range]:
    """Return ranges of positions that double in length: 0, 1, 2 to 3, 4 to 7, .."""
    starts = [0, *(2**power for power in range(num_positions.bit_length()) if 2**power < num_positions)]
    return [range(start, stop) for start, stop in zip(starts, [*starts[1:], num_positions], strict=True)]


def _residuals(found: Convergence) -> Table:
    title = f"{found.checkpoint}: residual by sweep and position, {found.num_tokens:,} tokens"
    bins = position_bins(len(found.tokens_by_position))
    # Every other one first: the rest still shows the course over the text.
    optional = [_name(one) for one in (*bins[1:-1:2], *bins[2:-1:2])]
    table = Table(title=title, box=SIMPLE_HEAD, optional=optional)
    for heading in ("sweep", "all", *map(_name, bins)):
        table.add_column(heading, justify="right")
    for sweep, residual in list(enumerate(found.residuals, start=1))[:MOST_ROWS]:
        table.add_row(
            str(sweep), f"{residual:.1e}", *(f"{found.residual_of(sweep, one):.1e}" for one in bins)
        )
    if found.contraction is not None:
        table.add_row("factor", f"{found.contraction.factor:.3f}", *(_factor(found, one) for one in bins))
    return table


def _name(positions: range) -> str:
    return str(positions.start) if len(positions) == 1 else f"{positions.start}-{positions.stop - 1}"


def _factor(found: Convergence, positions: range) -> str:
    laws = [found.contraction_by_position[position] for position in positions]
    factors = sorted(law.factor for law in laws if law is not None)
    return f"{factors[len(factors) // 2]:.3f}" if factors else ""


def _needed(found: Convergence) -> Table:
    table = Table(title="sweeps until the residual is within a tolerance", box=SIMPLE_HEAD)
    for heading in ("tolerance", "sweeps"):
        table.add_column(heading, justify="right")
    for one in found.needed:
        number = "never" if one.num_sweeps is None else str(one.num_sweeps)
        table.add_row(
            f"{one.tolerance:g}", f"{number} (by the fitted factor)" if one.is_extrapolated else number
        )
    return table


def _losses(found: Convergence) -> Table:
    title = f"training forward by J; the exact solution has loss {found.exact_loss:.5f}"
    table = Table(title=title, box=SIMPLE_HEAD)
    for heading in ("J", "loss", "more than exact", "largest logit error", "exact tokens", "guaranteed"):
        table.add_column(heading, justify="right")
    for one in found.forwards:
        table.add_row(
            str(one.num_jacobi_iterations),
            f"{one.loss:.5f}",
            f"{one.loss - found.exact_loss:+.1e}",
            f"{one.max_error:.1e}",
            str(one.num_exact),
            str(one.num_guaranteed),
        )
    return table


def _readings(found: Convergence) -> Table:
    table = Table(title=f"reading prompts to a tolerance of {found.reading_tolerance:g}", box=SIMPLE_HEAD)
    for heading in ("sweeps", "calls", "rows per token", "ms", "largest logit error"):
        table.add_column(heading, justify="left" if heading == "sweeps" else "right")
    for one in found.readings:
        table.add_row(
            way_name(one),
            str(one.num_calls),
            f"{one.rows_per_token:.1f}",
            f"{one.milliseconds:.1f}",
            f"{one.max_error:.1e}",
        )
    return table


def way_name(reading: Reading) -> str:
    """Name a way to read prompts."""
    name = "Jacobi" if reading.num_groups == 1 else f"{reading.num_groups} groups of tokens"
    name = "slot by slot" if reading.by_slot else name
    return name if reading.damping == 0 else f"{name}, damping {reading.damping:g}"
