import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_ext.ponder.config import Penalty
from megatron_ext.ponder.halting import step_distribution, tail_mass
from megatron_ext.ponder.penalties import (
    LabelScores,
    accuracies,
    bottom_k,
    expected_steps,
    halting_penalty,
    penalised_shares,
    penalty_levels,
    ramp,
    smallest_masses,
)

FROM_MASSES = [Penalty.EXPECTED_STEPS, Penalty.BOTTOM_K]

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
    for kind in FROM_MASSES:
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


@pytest.mark.parametrize("kind", FROM_MASSES)
def test_gradients_of_both_penalties(kind: Penalty) -> None:
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[True, True], [True, False], [True, True]])

    def penalty(logits: Tensor) -> Tensor:
        return halting_penalty(random_mass(logits), real, kind, 0.4)

    assert torch.autograd.gradcheck(penalty, logits)
    (gradient,) = torch.autograd.grad(penalty(logits), logits)
    assert (gradient[1, 1] == 0).all(), "padding has no share"
    assert gradient.abs().sum() > 0


# Two tokens of two sequences from 0, 1 and 2 steps; the last of them has no label.
HAS_LABEL = torch.tensor([[True, True], [True, False]])
LIKELIHOODS = [[[0.2, 0.9], [0.5, 1.0]], [[0.4, 0.8], [0.9, 1.0]], [[0.4, 0.95], [0.3, 1.0]]]
IS_FIRST = [[[False, True], [True, True]], [[True, True], [True, True]], [[True, True], [False, True]]]
SCORES = [
    LabelScores(nll=-torch.tensor(values, dtype=torch.float64).log(), is_first=torch.tensor(firsts))
    for values, firsts in zip(LIKELIHOODS, IS_FIRST, strict=True)
]
ACCURACIES = [(0.9 + 0.5) / 3, (0.4 + 0.8 + 0.9) / 3, (0.4 + 0.95) / 3]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_accuracies_are_the_mean_probability_of_labels_that_come_first() -> None:
    assert accuracies(SCORES, HAS_LABEL).tolist() == pytest.approx(ACCURACIES)


def test_levels_of_accuracy_are_those_of_one_step_less() -> None:
    levels = penalty_levels(Penalty.ACCURACY_BOTTOM, SCORES, HAS_LABEL)

    assert levels.tolist() == pytest.approx(ACCURACIES[:2])


def test_levels_of_the_loss_that_a_step_saves() -> None:
    levels = penalty_levels(Penalty.DELTA_LOSS, SCORES, HAS_LABEL)

    # The loss of step 1 less that of step 0, where it fell; then of step 2 less that of step 1.
    first = [math.log(0.2 / 0.4), 0.0, math.log(0.5 / 0.9)]
    second = [0.0, math.log(0.8 / 0.95), 0.0]
    expected = [sum(sigmoid(50 * value) for value in values) / 3 for values in (first, second)]
    assert levels.tolist() == pytest.approx(expected)


def test_levels_of_the_loss_that_is_left() -> None:
    levels = penalty_levels(Penalty.CE_LOSS, SCORES, HAS_LABEL)

    expected = [
        1 - sum(sigmoid(10 * (-math.log(value) - 0.5)) for value in values) / 3
        for values in ((0.4, 0.8, 0.9), (0.4, 0.95, 0.3))
    ]
    assert levels.tolist() == pytest.approx(expected)


def test_shares_are_what_a_level_adds_to_the_one_before() -> None:
    assert penalised_shares(torch.tensor([0.25, 0.75, 0.5, 1.0])).tolist() == [0.25, 0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        # Of w_1 0.2, 0.5, 0.8, 0.9 and of w_2 1e-12, 0.1, 0.3, 0.4.
        ([0.0, 0.0], 0.2 + 1e-12),
        ([0.49, 0.5], 0.2 + 0.05),
        ([0.5, 0.75], 0.35 + 0.4 / 3),
        ([1.0, 1.0], 2.4 / 4 + 0.8 / 4),
    ],
)
def test_the_smallest_masses_of_known_values(shares: list[float], expected: float) -> None:
    penalty = smallest_masses(MASS, ALL_REAL, torch.tensor(shares, dtype=torch.float64))

    assert penalty.item() == pytest.approx(expected)


def test_the_smallest_masses_are_of_real_tokens() -> None:
    shares = torch.tensor([0.7, 0.7], dtype=torch.float64)

    assert smallest_masses(MASS, WITHOUT_THE_LAST, shares).item() == pytest.approx(0.35 + 0.05)
    assert smallest_masses(MASS, torch.zeros_like(ALL_REAL), shares).item() == 0.0


def test_a_micro_batch_without_labels_has_finite_levels() -> None:
    for kind in set(Penalty) - set(FROM_MASSES):
        assert penalty_levels(kind, SCORES, torch.zeros_like(HAS_LABEL)).isfinite().all()


@given(masses=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30), share=st.floats(0, 1, width=32))
def test_the_smallest_masses_are_the_sorted_head(masses: list[float], share: float) -> None:
    mass = torch.stack([torch.ones(len(masses)), torch.tensor(masses)], dim=1).unsqueeze(2)
    real = torch.ones(len(masses), 1, dtype=torch.bool)
    count = max(1, math.floor(float(torch.tensor(share) * len(masses))))

    penalty = smallest_masses(mass, real, torch.tensor([share]))

    assert penalty.item() == pytest.approx(sum(sorted(masses)[:count]) / count, abs=1e-5)


def test_the_gradient_of_the_smallest_masses() -> None:
    logits = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[True, True], [True, False], [True, True]])
    shares = torch.tensor([0.5, 0.0, 0.7], dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda x: smallest_masses(random_mass(x), real, shares), logits)


def test_the_ramp_rises_linearly() -> None:
    assert [ramp(step, 10, 20) for step in (0, 10, 15, 20, 99)] == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_without_a_ramp_the_weight_is_there_from_the_start() -> None:
    assert [ramp(step, 0, 0) for step in (0, 1)] == [1.0, 1.0]
