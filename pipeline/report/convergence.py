"""The plot of the residuals of Jacobi sweeps, as a PNG."""

import math

from pipeline.evaluation.convergence.result import Convergence
from pipeline.evaluation.convergence.table import position_bins
from pipeline.report.colors import LIGHT, NUM_CURVE_COLORS, curve_role
from pipeline.report.style import render_png, styled_axes

SIZE = (720.0, 450.0)


def render_convergence_png(found: Convergence) -> bytes:
    """Draw residuals by sweep: of all thoughts, of ranges of positions, and the fitted law."""
    sweeps = range(1, len(found.residuals) + 1)
    with styled_axes(SIZE, LIGHT.__getitem__) as axes:
        bins = position_bins(len(found.tokens_by_position))
        for number, positions in enumerate(bins[-NUM_CURVE_COLORS:]):
            residuals = [found.residual_of(sweep, positions) for sweep in sweeps]
            axes.plot(
                sweeps,
                [residual or math.nan for residual in residuals],
                color=LIGHT[curve_role(number)],
                linewidth=1.2,
                label=f"positions {positions.start} to {positions.stop - 1}",
            )
        axes.plot(sweeps, found.residuals, color=LIGHT["ink"], marker="o", label="all")
        if found.contraction is not None:
            law = [found.contraction.start * found.contraction.factor**sweep for sweep in sweeps]
            axes.plot(
                sweeps,
                law,
                color=LIGHT["axis"],
                linestyle="dashed",
                label=f"factor {found.contraction.factor:.2f}",
            )
        axes.set_yscale("log")
        axes.set_xlabel("Jacobi sweep")
        axes.set_ylabel("residual")
        axes.legend(fontsize="small")
        return render_png(axes)
