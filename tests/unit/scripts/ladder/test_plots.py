"""Means over seeds, and the plots of a ladder."""

import warnings
from dataclasses import replace

import pytest

from pipeline.evaluation.results import LossQuartile
from pipeline.metrics.records import DecodingSpeed, LossPoint
from scripts.ladder.limits_table import render_limits_markdown
from scripts.ladder.means import Limit, flops_of, mean_curve, milliseconds_of, quartile_curve
from scripts.ladder.plots import (
    render_halting_png,
    render_quartiles_png,
    render_steps_png,
    render_training_png,
)
from scripts.ladder.points import RowPoints, SeedPoints


def point(loss: float, flops: float, *, milliseconds: float | None = None, **limit: object) -> LossPoint:
    speed = DecodingSpeed(
        batch_size=1,
        milliseconds_per_token=milliseconds or 1.0,
        tokens_per_second=1.0,
        mean_steps=1.0,
        flops_per_token=2.0,
        gain_reached=None,
    )
    speeds = () if milliseconds is None else (speed,)
    return LossPoint(loss=loss, mean_steps=1.0, flops_per_token=flops, speeds=speeds, **limit)  # type: ignore[arg-type]


def seed(
    loss: float,
    *budgets: str,
    control: float | None = None,
    milliseconds: float | None = None,
    steps: float = 0,
) -> SeedPoints:
    """Return a run of two steps that loses 1 nat without any, 0.5 in a budget, 0.7 by entropy."""
    own = [
        point(loss + 0.5, 2.0, budget=budget, pruning_threshold=0.3 * loss, milliseconds=milliseconds)
        for budget in budgets
    ]
    other = [
        point(loss + 0.7, 2.0, budget=budget, signal="entropy", pruning_threshold=9.0) for budget in budgets
    ]
    fixed = [point(loss + 1, 1.0, step_limit=0), point(loss, 3.0, step_limit=2, milliseconds=milliseconds)]
    quartiles = [
        LossQuartile(lowest_nll=at, highest_nll=at, mean_nll=at, mean_steps=steps + at, num_tokens=2)
        for at in (1.0, 2.0)
    ]
    return SeedPoints(control=control, points=[*fixed, *own, *other], quartiles=quartiles if steps else ())


def row_of(*seeds: SeedPoints, name: str = "ponderlm3") -> RowPoints:
    return RowPoints(row=name, training_flops=5.0, seeds=dict(enumerate(seeds)))


def shown(row: RowPoints, limit: Limit) -> list[tuple[float, float, float, int]]:
    return [(one.x, one.y, one.spread, one.num_seeds) for one in mean_curve(row, limit, flops_of)]


def test_points_of_one_setting_are_averaged_over_seeds() -> None:
    row = row_of(seed(1.0, "80%"), seed(2.0, "80%"))

    spread = pytest.approx(0.5**0.5)
    assert shown(row, Limit.FIXED) == [(1.0, 2.5, spread, 2), (3.0, 1.5, spread, 2)]
    assert shown(row, Limit.ROUTER) == [(2.0, 2.0, spread, 2), (3.0, 1.5, spread, 2)]
    assert shown(row, Limit.BASELINE) == [(2.0, pytest.approx(2.2), spread, 2), (3.0, 1.5, spread, 2)]


def test_a_curve_is_of_the_seeds_that_were_measured_and_of_what_they_have_in_common() -> None:
    row = row_of(seed(1.0, "80%", "90%"), seed(2.0, "80%"), seed(9.0))

    assert [y for _, y, _, _ in shown(row, Limit.ROUTER)] == [2.0, 1.5]
    assert [y for _, y, _, _ in shown(row, Limit.FIXED)] == [5.0, 4.0]


def test_the_time_is_that_of_the_seeds_that_were_timed() -> None:
    row = row_of(seed(1.0, "80%", milliseconds=4.0), seed(2.0, "80%"))

    first, _ = mean_curve(row, Limit.ROUTER, milliseconds_of)
    assert (first.x, first.y) == (4.0, 2.0)
    assert mean_curve(row_of(seed(1.0, "80%")), Limit.ROUTER, milliseconds_of) == []


def test_quarters_are_averaged_over_the_seeds_that_have_them() -> None:
    elsewhere = replace(seed(1.0, steps=7), pruned_at="80%")
    row = row_of(seed(1.0, steps=1), seed(1.0, steps=2), seed(1.0), elsewhere)

    assert [(one.x, one.y, one.num_seeds) for one in quartile_curve(row)] == [(1.0, 2.5, 2), (2.0, 3.5, 2)]


@pytest.mark.parametrize("control", [None, 1.5])
def test_plots_are_images_and_what_was_not_measured_is_not_drawn(control: float | None) -> None:
    measured = row_of(seed(1.0, "80%", control=control, steps=1), seed(2.0, "80%", control=control))
    rows = [measured, row_of(seed(1.0, control=control), name="ponderlm2")]

    with warnings.catch_warnings():
        # An empty legend, or text that does not fit, is a warning.
        warnings.simplefilter("error")
        drawn = [
            render_training_png(rows),
            render_steps_png(rows, flops_of, "FLOPs"),
            render_halting_png(rows, flops_of, "FLOPs"),
            render_quartiles_png(rows),
        ]
        left_out = [
            render_steps_png(rows, milliseconds_of, "ms"),
            render_halting_png(rows, milliseconds_of, "ms"),
            render_halting_png(rows[1:], flops_of, "FLOPs"),
            render_quartiles_png(rows[1:]),
        ]

    assert all(image is not None and image.startswith(b"\x89PNG") for image in drawn)
    assert left_out == [None] * 4


def test_rows_are_compared_on_the_seeds_of_the_control_only() -> None:
    without = row_of(seed(1.0), name="other")
    with_control = row_of(seed(1.0, control=1.2), seed(7.0))

    drawn, alone = (render_training_png(rows) for rows in ([with_control, without], [with_control]))
    assert drawn == alone


def test_the_table_has_every_point_once_relative_to_the_control() -> None:
    row = row_of(seed(1.0, "80%", control=1.5, milliseconds=4.0), seed(2.0, "80%", control=2.5))

    headings, _, *lines = render_limits_markdown([row]).splitlines()

    assert "vanilla" in headings
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [line[1:3] for line in cells] == [
        [Limit.ROUTER, "80%"],
        [Limit.BASELINE, "80%"],
        [Limit.FIXED, "0 steps"],
        [Limit.FIXED, "2 steps"],
    ]
    assert [line[5] for line in cells] == ["4.00", "", "", "4.00"]
    assert cells[0][6] == "+0.0000 ± 0.0000"
    assert cells[3][6] == "-0.5000 ± 0.0000"
