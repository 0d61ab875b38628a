import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from megatron_ext.ponder import halting

TAU = 1e-4
OPEN_ABOVE = 0.25

sizes = st.integers(1, 4)


def column(*values: float) -> Tensor:
    """One token of one sequence: [1, K + 1, 1] in float64."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1)


def random_logits(num_thoughts: int, *, spread: float = 3.0, seed: int = 0) -> Tensor:
    """[4, 2, K + 1] in float64."""
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(4, 2, num_thoughts + 1, dtype=torch.float64, generator=generator)


def test_the_tail_mass_of_a_known_distribution() -> None:
    mass = halting.tail_mass(column(0.1, 0.2, 0.3, 0.4))

    torch.testing.assert_close(mass, column(1.0, 0.9, 0.7, 0.4))


@given(num_thoughts=st.integers(0, 5), spread=st.floats(0, 60), seed=st.integers(0, 1000))
def test_tail_mass_is_one_then_non_increasing(num_thoughts: int, spread: float, seed: int) -> None:
    distribution = halting.step_distribution(random_logits(num_thoughts, spread=spread, seed=seed).float())

    mass = halting.tail_mass(distribution)

    assert mass.shape == distribution.shape == (4, num_thoughts + 1, 2)
    assert (mass[:, 0] == 1).all()
    assert (mass[:, 1:] <= mass[:, :-1] + 1e-6).all()
    assert (mass >= 0).all()


def test_the_distribution_is_a_softmax_over_steps_in_at_least_float32() -> None:
    logits = torch.tensor([[[0.0, math.log(3.0)]]], dtype=torch.bfloat16)

    distribution = halting.step_distribution(logits)

    assert distribution.dtype == torch.float32
    assert distribution.shape == (1, 2, 1)
    torch.testing.assert_close(distribution.flatten(), torch.tensor([0.25, 0.75]), rtol=0, atol=2e-3)
    assert halting.step_distribution(logits.double()).dtype == torch.float64


def test_a_small_tail_keeps_all_its_digits() -> None:
    # 1 - cumsum would leave a multiple of float32's 6e-8 here.
    tiny = 1.2345678e-8
    mass = halting.tail_mass(torch.tensor([1.0 - tiny, tiny / 2, tiny / 2]).reshape(1, 3, 1))

    torch.testing.assert_close(mass[0, 1, 0].item(), tiny, rtol=1e-6, atol=0)


def test_the_first_slot_has_no_weight_and_no_gradient() -> None:
    logits = random_logits(2).requires_grad_()
    log_mass = halting.log_tail_mass(halting.tail_mass(halting.step_distribution(logits)))

    assert (log_mass[:, 0] == 0).all()
    (gradient,) = torch.autograd.grad(log_mass[:, 0].sum(), logits)
    assert (gradient == 0).all()


@pytest.mark.parametrize("num_thoughts", [1, 2, 4])
def test_gradients_of_tail_mass_and_soft_mask(num_thoughts: int) -> None:
    logits = random_logits(num_thoughts, spread=1.0).requires_grad_()

    def tail(logits: Tensor) -> Tensor:
        return halting.tail_mass(halting.step_distribution(logits))

    assert torch.autograd.gradcheck(tail, logits)
    assert torch.autograd.gradcheck(lambda logits: halting.log_tail_mass(tail(logits)), logits)
    assert torch.autograd.gradcheck(lambda logits: halting.hard_log_tail_mass(tail(logits), 0.2), logits)


def test_the_clamp_stops_the_gradient() -> None:
    mass = column(1.0, 1e-3, 1e-12).requires_grad_()
    log_mass = halting.log_tail_mass(mass)

    log_mass.sum().backward()

    torch.testing.assert_close(log_mass.detach(), column(0.0, math.log(1e-3), math.log(1e-9)))
    torch.testing.assert_close(mass.grad, column(1.0, 1e3, 0.0))


def test_a_hard_mask_keeps_log_w_down_to_the_threshold() -> None:
    log_mass = halting.hard_log_tail_mass(column(1.0, TAU, TAU * 0.999), TAU)

    torch.testing.assert_close(log_mass, column(0.0, math.log(TAU), halting.PRUNED_LOG_MASS))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert torch.exp(torch.tensor(halting.PRUNED_LOG_MASS, dtype=dtype)) == 0


def test_keys_that_training_hides_have_no_gradient_and_the_others_their_log_w() -> None:
    mass = column(1.0, 0.5, TAU * 1.001, TAU, 1e-13).requires_grad_()

    log_mass = halting.hidden_log_tail_mass(mass, TAU)
    log_mass.sum().backward()

    expected = column(0.0, math.log(0.5), math.log(TAU * 1.001), -1e4, -1e4)
    torch.testing.assert_close(log_mass.detach(), expected)
    torch.testing.assert_close(mass.grad, column(1.0, 2.0, 1 / (TAU * 1.001), 0.0, 0.0))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        assert torch.exp(torch.tensor(halting.HIDDEN_LOG_MASS, dtype=dtype)) == 0


def test_kept_keys_are_clamped_later_where_keys_are_hidden() -> None:
    mass = column(1.0, 1e-10, 1e-13)

    log_mass = halting.log_key_mass(mass, 0.0, hides_keys=True)

    torch.testing.assert_close(log_mass, column(0.0, math.log(1e-10), math.log(1e-12)))
    assert torch.equal(halting.log_key_mass(mass, 0.0, hides_keys=False), halting.log_tail_mass(mass))


@pytest.mark.parametrize(("hides_keys", "steps"), [(False, 2), (True, 1)])
def test_a_slot_at_the_threshold_is_kept_unless_training_hides_keys(hides_keys: bool, steps: int) -> None:
    mass = column(1.0, 0.9, TAU)

    assert halting.steps_taken(mass, TAU, hides_keys=hides_keys).tolist() == [[steps]]
    assert halting.is_kept(mass, TAU, hides_keys=hides_keys).flatten().tolist() == [True, True, steps == 2]
    last = halting.last_step_weights(mass, TAU, hides_keys=hides_keys)
    assert last.flatten().argmax().item() == steps


@pytest.mark.parametrize(
    ("mass", "steps"),
    [
        ((1.0, 0.9, 0.5), 2),
        ((1.0, 0.9, TAU), 2),
        ((1.0, 0.9, TAU * 0.999), 1),
        ((1.0, TAU * 0.999, TAU * 0.999), 0),
        ((1.0,), 0),
    ],
)
def test_a_token_takes_the_last_step_that_reaches_the_threshold(mass: tuple[float, ...], steps: int) -> None:
    assert halting.steps_taken(column(*mass), TAU).tolist() == [[steps]]


def test_the_readout_is_the_expectation_over_steps() -> None:
    hidden = torch.randn(3, 4, 2, 5, dtype=torch.float64)
    distribution = halting.step_distribution(torch.randn(3, 2, 4, dtype=torch.float64))

    mixed = halting.mix_steps(hidden, distribution)

    for token in range(3):
        for row in range(2):
            plain = sum(distribution[token, k, row] * hidden[token, k, row] for k in range(4))
            torch.testing.assert_close(mixed[token, row], plain)


def test_the_readout_returns_the_hidden_states_dtype() -> None:
    hidden = torch.ones(1, 2, 1, 3, dtype=torch.bfloat16)

    assert halting.mix_steps(hidden, torch.full((1, 2, 1), 0.5)).dtype == torch.bfloat16


def test_gradients_of_the_readout() -> None:
    hidden = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)

    def read(hidden: Tensor, logits: Tensor) -> Tensor:
        return halting.mix_steps(hidden, halting.step_distribution(logits))

    assert torch.autograd.gradcheck(read, (hidden, logits))


def test_entropy_in_nats() -> None:
    entropy = halting.step_entropy(torch.cat([column(0.5, 0.5), column(1.0, 0.0), column(0.25, 0.75)]))

    expected = [math.log(2), 0.0, -0.25 * math.log(0.25) - 0.75 * math.log(0.75)]
    torch.testing.assert_close(entropy.flatten(), torch.tensor(expected, dtype=torch.float64))


def test_a_gate_at_the_threshold_is_open() -> None:
    at_threshold = torch.logit(torch.tensor([[OPEN_ABOVE, OPEN_ABOVE - 1e-3]], dtype=torch.float64))

    assert halting.still_active(torch.ones(1, 2, dtype=torch.bool), at_threshold, OPEN_ABOVE).tolist() == [
        [True, False]
    ]


def test_a_gate_closes_below_the_logit_of_the_threshold() -> None:
    closing = halting.closing_logit(0.25)
    active = torch.ones(1, 2, dtype=torch.bool)

    assert closing == pytest.approx(-math.log(3))
    assert halting.still_active(active, torch.tensor([[closing - 1e-4, closing + 1e-4]]), 0.25).tolist() == [
        [False, True]
    ]
    assert halting.closing_logit(0.0) == -math.inf


def test_a_halted_token_stays_halted_even_if_its_gate_opens() -> None:
    assert not halting.still_active(torch.tensor([[False]]), torch.tensor([[50.0]]), OPEN_ABOVE).any()


@pytest.mark.parametrize(
    ("logits", "steps"),
    [([9.0, 9.0, 9.0], 3), ([9.0, 9.0, -9.0], 2), ([9.0, -9.0, 9.0], 1), ([-9.0, 9.0, 9.0], 0), ([], 0)],
)
def test_a_token_iterates_until_its_first_closed_gate(logits: list[float], steps: int) -> None:
    assert halting.active_iterations(torch.tensor(logits).reshape(1, 1, -1), OPEN_ABOVE).tolist() == [[steps]]


@given(num_tokens=sizes, batch=sizes, num_iterations=sizes, threshold=st.floats(0.0, 0.99))
def test_the_mask_is_monotone_and_its_sum_is_the_number_of_iterations(
    num_tokens: int, batch: int, num_iterations: int, threshold: float
) -> None:
    logits = 3 * torch.randn(num_tokens, batch, num_iterations)
    masks = [torch.ones(num_tokens, batch, dtype=torch.bool)]

    for index in range(num_iterations):
        masks.append(halting.still_active(masks[-1], logits[..., index], threshold))

    steps = halting.active_iterations(logits, threshold)
    assert steps.dtype == torch.int64
    assert torch.equal(torch.stack(masks[1:]).sum(dim=0), steps)
    for before, after in pairwise(masks):
        assert (after <= before).all()
