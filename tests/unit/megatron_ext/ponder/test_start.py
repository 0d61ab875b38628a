"""The blended start by hand."""

import pytest
import torch

from megatron_ext.ponder.start import added_log_weight, blend, pondering_share

ROWS = torch.zeros(1)


@pytest.mark.parametrize(
    ("iteration", "length", "share"),
    [
        (-3, 4, 0.0),
        (-3, 0, 1.0),
        (0, 4, 0.0),
        (1, 4, 0.25),
        (3, 4, 0.75),
        (4, 4, 1.0),
        (9, 4, 1.0),
        (0, 0, 1.0),
    ],
)
def test_the_share_rises_linearly_and_stays(iteration: int, length: int, share: float) -> None:
    assert pondering_share(iteration, length) == share


def test_all_slots_but_the_first_weigh_less() -> None:
    assert added_log_weight(0.25, 3, ROWS).tolist() == [0.0, -4.5, -4.5]
    assert added_log_weight(1.0, 2, ROWS).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_both_ends_of_a_blend_are_exact(dtype: torch.dtype) -> None:
    first, own = torch.randn(2, 5).to(dtype), torch.randn(2, 5).to(dtype)

    assert torch.equal(blend(first, own, 0.0), first)
    assert torch.equal(blend(first, own, 1.0), own)
    torch.testing.assert_close(blend(first, own, 0.25), 0.75 * first + 0.25 * own)
