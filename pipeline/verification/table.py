"""A verification as tables for the terminal."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD

from pipeline.shared.tables import Table
from pipeline.verification.result import JUDGED_THRESHOLD, Comparison, Decoding, VerifiedCheckpoint

# Above this, further sweeps still change the logits of the forward.
SETTLED_RESIDUAL = 1e-5


def render_verification(result: VerifiedCheckpoint) -> Iterator[Table]:
    """Lay out the errors by threshold, and where there are sweeps, by their number."""
    verification = result.verification
    most = verification.settled.num_jacobi_iterations
    of_method = (
        f"{result.checkpoint}: {result.method}, {result.precision}, {verification.num_tokens:,} tokens"
    )
    with_sweeps = f", forward with {most} sweeps" if verification.residuals else ""
    table = _table(f"{of_method}{with_sweeps}", "tau", "steps per token", "loss decoded", "loss forward")
    for decoding in verification.decodings:
        comparison = next(
            one
            for one in verification.comparisons
            if one.num_jacobi_iterations == most and one.pruning_threshold == decoding.pruning_threshold
        )
        table.add_row(*_by_threshold(decoding, comparison))
    yield table
    sweeps = sorted({one.num_jacobi_iterations for one in verification.comparisons})
    if not verification.residuals and len(sweeps) == 1:
        return
    judged = "" if verification.decodings[0].pruning_threshold is None else f" at tau {JUDGED_THRESHOLD:g}"
    title = f"by Jacobi sweeps{judged}; contraction {_or_dash(verification.contraction, '.3f')}"
    table = _table(title, "J", "residual", "loss forward")
    for number in sweeps:
        comparison = verification.comparison(number)
        residual = verification.residuals[number - 1] if 0 < number <= len(verification.residuals) else None
        own = " (the run's)" if number == result.run_jacobi_iterations else ""
        table.add_row(
            f"{number}{own}",
            _or_dash(residual, ".2e"),
            f"{comparison.forward_loss:.5f}",
            *_errors(comparison),
        )
    yield table


def render_verdict(result: VerifiedCheckpoint) -> str:
    """Return the verdict in a few lines."""
    settled = result.verification.settled
    lines = [_judged("largest error", settled.max_error, result.bound)]
    residuals = result.verification.residuals
    if residuals and residuals[-1] > SETTLED_RESIDUAL:
        lines.append(
            f"after {len(residuals)} sweeps the thoughts still move (residual {residuals[-1]:.1e}); "
            "use more --jacobi-iterations to separate the error of the sweeps from that of pruning"
        )
    if result.run_bound is not None:
        own = result.verification.comparison(result.run_jacobi_iterations)
        name = f"largest error with the run's {result.run_jacobi_iterations} sweeps"
        lines.append(_judged(name, own.max_error, result.run_bound))
    return "\n".join(lines)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, optional=("mean error", "same top token"))
    for column in (*columns, "max error", "mean error", "same top token"):
        table.add_column(column, justify="right")
    return table


def _by_threshold(decoding: Decoding, comparison: Comparison) -> tuple[str, ...]:
    return (
        _or_dash(decoding.pruning_threshold, "g"),
        f"{decoding.mean_steps:.3f}",
        f"{decoding.loss:.5f}",
        f"{comparison.forward_loss:.5f}",
        *_errors(comparison),
    )


def _errors(comparison: Comparison) -> tuple[str, str, str]:
    agreement = f"{comparison.top1_agreement:.2%}"
    return f"{comparison.max_error:.2e}", f"{comparison.mean_error:.2e}", agreement


def _judged(name: str, error: float, bound: float) -> str:
    verdict = "agrees" if error <= bound else "DISAGREES"
    return f"{verdict}: {name} {error:.2e}, bound {bound:g}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
