"""Losses under limits on steps and thresholds are the same on every layout as in one process."""

from dataclasses import asdict

import pytest

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
