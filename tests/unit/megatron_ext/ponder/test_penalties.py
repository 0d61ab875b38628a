import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_ext.ponder.config import Penalty
from megatron_ext.ponder.halting import step_distribution, tail_mass
from megatron_ext.ponder.penalties import bottom_k, expected_steps, halting_penalty, ramp

# w of two tokens in two sequences, [S, K + 1, B].
MASS = torch.tensor(
    [[[1.0, 1.0], [0.8, 0.5], [0.4, 0.1]], [[1.0, 1.0], [0.2, 0.9], [1e-12, 0.3]]], dtype=torch.float64
)
ALL_REAL = torch.ones(2, 2, dtype=torch.bool)
WITHOUT_THE_LAST = torch.tensor([[True, True], [True, False]])


def random_mass(logits: Tensor) -> Tensor:
    return tail_mass(step_distribution(logits))


def test_expected_steps_is_the_mean_share_of_k() -> None:
    by_token = [0.8 + 0.4, 0.5 + 0.1, 0.2 + 1e-12, 0.9 + 0.3]

    assert expected_steps(MASS, ALL_REAL).item() == pytest.approx(sum(by_token) / 2 / 4)
    assert expected_steps(MASS, WITHOUT_THE_LAST).item() == pytest.approx(sum(by_token[:3]) / 2 / 3)


def test_expected_steps_is_in_zero_to_one() -> None:
    assert expected_steps(torch.ones(3, 4, 2), torch.ones(3, 2, dtype=torch.bool)).item() == 1.0
    never = torch.cat([torch.ones(3, 1, 2), torch.zeros(3, 3, 2)], dim=1)
    assert expected_steps(never, torch.ones(3, 2, dtype=torch.bool)).item() == 0.0


def test_without_thoughts_or_tokens_there_is_nothing_to_penalise() -> None:
    for kind in Penalty:
        assert (
            halting_penalty(torch.ones(3, 1, 2), torch.ones(3, 2, dtype=torch.bool), kind, 0.25).item() == 0.0
        )
        assert halting_penalty(MASS, torch.zeros_like(ALL_REAL), kind, 0.25).item() == 0.0


def test_bottom_k_of_known_values() -> None:
    values = torch.tensor([[3.0, -1.0], [0.0, -5.0], [2.0, 7.0]])

    assert bottom_k(values, 0.5).item() == pytest.approx((-5 - 1 + 0) / 3)
    assert bottom_k(values, 0.49).item() == pytest.approx((-5 - 1) / 2)
    assert bottom_k(values, 0.01).item() == -5.0
    assert bottom_k(values, 0.0).item() == 0.0
    assert bottom_k(values, 1.0).item() == pytest.approx(1.0)


@given(
    values=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=30),
    fraction=st.floats(0, 1, exclude_min=True),
)
def test_bottom_k_is_the_mean_of_the_sorted_head(values: list[float], fraction: float) -> None:
    count = max(1, math.floor(fraction * len(values)))
    plain = sum(sorted(values)[:count]) / count

    assert bottom_k(torch.tensor(values), fraction).item() == pytest.approx(plain, abs=1e-4)


def test_bottom_k_pools_clamped_log_w_of_real_tokens_and_all_steps() -> None:
    logs = sorted(math.log(max(w, 1e-9)) for w in (0.8, 0.4, 0.5, 0.1, 0.2, 1e-12))

    penalty = halting_penalty(MASS, WITHOUT_THE_LAST, Penalty.BOTTOM_K, 0.5)

    assert penalty.item() == pytest.approx(sum(logs[:3]) / 3)


@pytest.mark.parametrize("kind", Penalty)
def test_gradients_of_both_penalties(kind: Penalty) -> None:
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[True, True], [True, False], [True, True]])

    def penalty(logits: Tensor) -> Tensor:
        return halting_penalty(random_mass(logits), real, kind, 0.4)

    assert torch.autograd.gradcheck(penalty, logits)
    (gradient,) = torch.autograd.grad(penalty(logits), logits)
    assert (gradient[1, 1] == 0).all(), "padding has no share"
    assert gradient.abs().sum() > 0


def test_the_ramp_rises_linearly() -> None:
    assert [ramp(step, 10, 20) for step in (0, 10, 15, 20, 99)] == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_without_a_ramp_the_weight_is_there_from_the_start() -> None:
    assert [ramp(step, 0, 0) for step in (0, 1)] == [1.0, 1.0]
