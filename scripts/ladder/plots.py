"""The plots of a ladder: held-out loss against what a token or the training costs, over seeds."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.ticker import EngFormatter, FixedLocator, FuncFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from pipeline.report.colors import LIGHT, NUM_CURVE_COLORS, curve_role
from pipeline.report.style import PIXELS_PER_INCH, render_figure_png, styled_figure
from scripts.ladder.means import (
    CostOf,
    Limit,
    MeanPoint,
    compared,
    has_control,
    mean_curve,
    mean_point,
    measured_seeds,
    quartile_curve,
)
from scripts.ladder.points import RowPoints

SIZE = (900.0, 460.0)
PANEL_SIZE, MOST_COLUMNS = (310.0, 330.0), 3
MARKERS = "os^vDP*X"
LOSS, LOSS_DIFFERENCE = "held-out loss, nats per token", "held-out loss, nats, minus the control's"
# Up to this difference, in nats, the scale is linear, beyond it logarithmic: one plot shows 0.01 and 0.3.
LINEAR_TO = 0.02
TICKS = (-0.05, -0.02, -0.01, 0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# Rows whose costs differ by at most this share of the axis are drawn so many pixels apart.
NEAR, DODGE = 0.02, 5.0


class _Legend(TypedDict):
    handles: list[Any]
    labels: list[str]


_LOOKS = {
    Limit.ROUTER: {"color": LIGHT["c2"], "marker": "o", "linestyle": "solid"},
    Limit.BASELINE: {"color": LIGHT["c1"], "marker": "s", "linestyle": "dashed"},
    Limit.FIXED: {"color": LIGHT["c3"], "marker": "D", "linestyle": "dotted"},
}


def render_training_png(rows: Sequence[RowPoints]) -> bytes | None:
    """Draw the loss of each row with all steps against the FLOPs of its training."""
    curves = {
        row.row: [mean_point("", [row.training_flops], [run.whole.loss for run in row.seeds.values()])]
        for row in compared(rows)
    }
    return _render_rows(curves, rows, "FLOPs of training", "Held-out loss by cost of training")


def render_steps_png(rows: Sequence[RowPoints], cost_of: CostOf, cost: str) -> bytes | None:
    """Draw the loss of each row with 0..K steps for all tokens against what a token costs.

    None where no row has a cost.
    """
    curves = {row.row: mean_curve(row, Limit.FIXED, cost_of) for row in compared(rows)}
    title = "Held-out loss by cost of a token, with the same number of steps for all tokens"
    return _render_rows(curves, rows, cost, title)


def render_halting_png(rows: Sequence[RowPoints], cost_of: CostOf, cost: str) -> bytes | None:
    """Draw learned halting, halting that needs no training, and fixed numbers of steps, a panel for each row.

    None where no row has a cost within a budget.
    """
    by_row = {
        row.row: {limit: mean_curve(row, limit, cost_of) for limit in Limit}
        for row in map(measured_seeds, compared(rows))
    }
    shown = {row: curves for row, curves in by_row.items() if curves[Limit.ROUTER]}
    if not shown:
        return None
    num_columns = min(len(shown), MOST_COLUMNS)
    num_lines = -(-len(shown) // num_columns)
    # The legend needs the width of two panels.
    size = (PANEL_SIZE[0] * max(num_columns, 2), PANEL_SIZE[1] * num_lines)
    with styled_figure(size, LIGHT.__getitem__) as figure:
        grid = figure.subplots(num_lines, num_columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.remove()
        for axes, (row, curves) in zip(grid.flat, shown.items(), strict=False):
            _draw_panel(axes, row, curves)
            _scale(axes, rows, [point for curve in curves.values() for point in curve])
        figure.legend(
            **_legend_of(figure.axes), loc="outside upper center", ncols=len(Limit), fontsize="small"
        )
        figure.supxlabel(cost, fontsize="medium", color=LIGHT["muted"])
        label = LOSS_DIFFERENCE if has_control(rows) else LOSS
        figure.supylabel(label, fontsize="medium", color=LIGHT["muted"])
        return render_figure_png(figure)


def render_quartiles_png(rows: Sequence[RowPoints]) -> bytes | None:
    """Draw the mean steps of the tokens of each quarter of losses; None where no row has them."""
    curves = {row.row: quartile_curve(row) for row in rows}
    curves = {f"{row}, {curve[0].name}" if curve else row: curve for row, curve in curves.items()}
    if not any(curves.values()):
        return None
    with styled_figure(SIZE, LIGHT.__getitem__) as figure:
        axes = figure.add_subplot()
        axes.grid(axis="y")
        _draw_rows(axes, curves, linestyle="solid")
        axes.set_xlabel("loss of a token: mean of each quarter, from the easiest to the hardest, nats")
        axes.set_ylabel("mean steps")
        axes.set_title("Steps by the token's own loss, where steps are pruned", fontsize="medium")
        axes.margins(x=0.05, y=0.1)
        figure.legend(**_legend_of([axes]), loc="outside right upper", fontsize="small")
        return render_figure_png(figure)


def _loss_label(rows: Sequence[RowPoints]) -> str:
    if not has_control(rows):
        return LOSS
    control = {
        seed: run.control for row in rows for seed, run in row.seeds.items() if run.control is not None
    }
    return f"{LOSS_DIFFERENCE} ({statistics.fmean(control.values()):.3f})"


def _render_rows(
    curves: Mapping[str, Sequence[MeanPoint]], rows: Sequence[RowPoints], cost: str, title: str
) -> bytes | None:
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return None
    with styled_figure(SIZE, LIGHT.__getitem__) as figure:
        axes = figure.add_subplot()
        axes.grid(axis="y")
        _draw_rows(axes, curves, linestyle="dotted")
        _scale(axes, rows, points)
        axes.set_xlabel(cost)
        axes.set_ylabel(_loss_label(rows))
        axes.set_title(f"{title}\nmean and standard deviation over seeds", fontsize="medium")
        figure.legend(**_legend_of([axes]), loc="outside right upper", fontsize="small")
        return render_figure_png(figure)


def _draw_rows(axes: Axes, curves: Mapping[str, Sequence[MeanPoint]], *, linestyle: str) -> None:
    """Draw a line of points for each row; its look depends on its place among all rows, so plots agree."""
    pixels = _dodges({row: curve[-1].x for row, curve in curves.items() if curve})
    for number, (row, curve) in enumerate(curves.items()):
        if not curve:
            continue
        drawn = _draw(
            axes,
            curve,
            label=row if curve[0].num_seeds > 1 else f"{row} (1 seed)",
            color=LIGHT[curve_role(number)],
            marker=MARKERS[(number + number // NUM_CURVE_COLORS) % len(MARKERS)],
            linestyle=linestyle,
        )
        shift = ScaledTranslation(pixels[row] / PIXELS_PER_INCH, 0, axes.figure.dpi_scale_trans)
        for artist in drawn.get_children():
            artist.set_transform(axes.transData + shift)


def _dodges(costs: Mapping[str, float]) -> dict[str, float]:
    """Return how many pixels to the right each row is drawn: 0, but for rows of about equal costs."""
    near = NEAR * (max(costs.values()) - min(costs.values()))
    groups: list[list[str]] = []
    for row in sorted(costs, key=lambda one: costs[one]):
        if groups and costs[row] - costs[groups[-1][-1]] <= near:
            groups[-1].append(row)
        else:
            groups.append([row])
    return {
        row: DODGE * (number - (len(group) - 1) / 2) for group in groups for number, row in enumerate(group)
    }


def _draw_panel(axes: Axes, row: str, curves: Mapping[Limit, Sequence[MeanPoint]]) -> None:
    for limit, curve in curves.items():
        if curve:
            _draw(axes, curve, label=limit, **_LOOKS[limit])
    num_seeds = curves[Limit.ROUTER][0].num_seeds
    axes.grid(axis="y")
    axes.set_title(f"{row}, {num_seeds} {'seed' if num_seeds == 1 else 'seeds'}", fontsize="medium")


def _draw(axes: Axes, curve: Sequence[MeanPoint], **look: Any) -> ErrorbarContainer:
    bars = [point.spread for point in curve] if curve[0].num_seeds > 1 else None
    x, y = [point.x for point in curve], [point.y for point in curve]
    return axes.errorbar(x, y, yerr=bars, capsize=2, elinewidth=1.4, **look)


def _scale(axes: Axes, rows: Sequence[RowPoints], points: Sequence[MeanPoint]) -> None:
    """Show differences to the control around a line at 0, large ones by their logarithm."""
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.margins(x=0.1, y=0.1)
    if not has_control(rows):
        return
    axes.axhline(0, color=LIGHT["axis"], linewidth=2.0, zorder=1)
    if max(abs(point.y) + point.spread for point in points) > 2 * LINEAR_TO:
        axes.set_yscale("symlog", linthresh=LINEAR_TO)
        axes.yaxis.set_major_locator(FixedLocator(TICKS))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.3g}" if value else "0"))


def _legend_of(panels: Sequence[Axes]) -> _Legend:
    """Return the distinct entries of a legend of all panels."""
    entries: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
    return {"handles": list(entries.values()), "labels": list(entries)}
