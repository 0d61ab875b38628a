"""When a forward asks the router, and how much of the answer counts (definitions 2.5, 2.8)."""

import pytest

from megatron_ext.ponder.config import ReadoutFrom, RouterForm
from megatron_ext.ponder.renewal import ALWAYS, Renewal


def shares(renewal: Renewal, num_thoughts: int, num_sweeps: int) -> list[float]:
    num_passes = 1 if num_thoughts == 0 else num_thoughts + num_sweeps + 1
    return [
        renewal.share(index, num_thoughts=num_thoughts, num_sweeps=num_sweeps) for index in range(num_passes)
    ]


AUTHORS = Renewal(pre_pass=True, damping=0.1, reads_last_sweep=True)


@pytest.mark.parametrize(
    ("renewal", "num_thoughts", "num_sweeps", "expected"),
    [
        (ALWAYS, 2, 3, [1, 1, 1, 1, 1, 1]),
        (AUTHORS, 3, 4, [1, 0, 0, 0.1, 0.1, 0.1, 1, 0]),
        (AUTHORS, 3, 1, [1, 0, 0, 1, 0]),
        (AUTHORS, 2, 0, [1, 0, 0]),
        (AUTHORS, 1, 2, [1, 0.1, 1, 0]),
        (AUTHORS, 0, 5, [1]),
        (Renewal(pre_pass=True), 2, 2, [1, 0, 1, 1, 1]),
        (Renewal(damping=0.5), 2, 3, [1, 1, 0.5, 0.5, 1, 1]),
        (Renewal(damping=0.5, undamped_sweeps=0), 2, 2, [1, 1, 0.5, 0.5, 1]),
        (Renewal(damping=0.5, undamped_sweeps=2), 2, 3, [1, 1, 0.5, 1, 1, 1]),
        (Renewal(damping=0.5, undamped_sweeps=9), 2, 3, [1, 1, 1, 1, 1, 1]),
        (Renewal(reads_last_sweep=True), 2, 0, [1, 1, 0]),
    ],
)
def test_the_share_of_the_newest_decision_by_pass(
    renewal: Renewal, num_thoughts: int, num_sweeps: int, expected: list[float]
) -> None:
    assert shares(renewal, num_thoughts, num_sweeps) == expected


def test_a_form_names_its_renewal() -> None:
    form = RouterForm(
        pre_pass=True, router_damping=0.1, undamped_sweeps=1, readout_from=ReadoutFrom.LAST_SWEEP
    )

    assert form.renewal == AUTHORS
    assert RouterForm().renewal == ALWAYS
