from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_ext.ponder.gates import active_iterations, still_active

TAU = 0.25

sizes = st.integers(1, 4)


def test_a_gate_at_the_threshold_is_open() -> None:
    at_threshold = torch.logit(torch.tensor([[TAU, TAU - 1e-3]], dtype=torch.float64))

    assert still_active(torch.ones(1, 2, dtype=torch.bool), at_threshold, TAU).tolist() == [[True, False]]


def test_a_halted_token_stays_halted_whatever_its_gate_says() -> None:
    assert not still_active(torch.tensor([[False]]), torch.tensor([[50.0]]), TAU).any()


@pytest.mark.parametrize(
    ("logits", "steps"),
    [([9.0, 9.0, 9.0], 3), ([9.0, 9.0, -9.0], 2), ([9.0, -9.0, 9.0], 1), ([-9.0, 9.0, 9.0], 0), ([], 0)],
)
def test_a_token_iterates_until_its_first_closed_gate(logits: list[float], steps: int) -> None:
    assert active_iterations(torch.tensor(logits).reshape(1, 1, -1), TAU).tolist() == [[steps]]


@given(num_tokens=sizes, batch=sizes, num_iterations=sizes, threshold=st.floats(0.0, 0.99))
def test_the_mask_is_monotone_and_its_sum_is_the_number_of_iterations(
    num_tokens: int, batch: int, num_iterations: int, threshold: float
) -> None:
    logits = 3 * torch.randn(num_tokens, batch, num_iterations)
    masks = [torch.ones(num_tokens, batch, dtype=torch.bool)]

    for index in range(num_iterations):
        masks.append(still_active(masks[-1], logits[..., index], threshold))

    steps = active_iterations(logits, threshold)
    assert steps.dtype == torch.int64
    assert torch.equal(torch.stack(masks[1:]).sum(dim=0), steps)
    for before, after in pairwise(masks):
        assert (after <= before).all()
