"""Losses under limits on steps and thresholds are the same on every layout as in one process."""

from dataclasses import asdict

import pytest

from tests.support.heldout_text import budgets_met
from tests.support.layouts import LAYOUTS, ONE_PROCESS
from tests.support.limit_points import limit_points
from tests.support.ranks import SharedRanks, run_alone

pytestmark = pytest.mark.multiprocess


@pytest.mark.parametrize("model", ["ponderlm3, llama", "adaponderlm, llama"])
def test_two_ranks_find_the_curves_of_one(ranks: SharedRanks, model: str) -> None:
    expected = [asdict(point) for point in run_alone(limit_points, model, ONE_PROCESS)]

    for layout in ("PP2", "DP2"):
        for points in ranks.run(limit_points, 2, model, LAYOUTS[layout]):
            found = [asdict(point) for point in points]
            assert found == [{**point, "loss": pytest.approx(point["loss"], rel=1e-5)} for point in expected]


def test_two_ranks_find_the_thresholds_of_budgets_of_one(ranks: SharedRanks) -> None:
    expected = run_alone(budgets_met, ONE_PROCESS)

    for layout in ("TP2", "DP2"):
        for found in ranks.run(budgets_met, 2, LAYOUTS[layout]):
            assert found == [pytest.approx(of_way, rel=1e-4) for of_way in expected]
