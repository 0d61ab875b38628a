import torch

from megatron_ext.ponder.residual import residual, squared_change

REAL = torch.tensor([[True, True], [True, False]])


def test_sums_of_a_hand_made_change() -> None:
    # Two tokens of two sequences, one thought of one channel each.
    old = torch.tensor([1.0, 2.0, 3.0, 100.0]).reshape(2, 1, 2, 1)
    new = torch.tensor([1.5, 2.0, 1.0, -100.0]).reshape(2, 1, 2, 1)

    change, norm = squared_change(new, old, REAL)

    assert change.item() == 0.25 + 0.0 + 4.0
    assert norm.item() == 1.0 + 4.0 + 9.0
    torch.testing.assert_close(residual(change, norm), torch.tensor((4.25 / 14) ** 0.5))


def test_the_residual_is_a_ratio_of_root_mean_squares_over_all_thoughts() -> None:
    old, new = torch.randn(2, 2, 3, 2, 5, dtype=torch.float64)
    everything = torch.ones(2, 2, dtype=torch.bool)

    ratio = residual(*squared_change(new, old, everything))

    torch.testing.assert_close(ratio, (new - old).square().mean().sqrt() / old.square().mean().sqrt())


def test_nothing_measured_is_no_residual() -> None:
    assert residual(torch.zeros(2), torch.zeros(2)).tolist() == [0.0, 0.0]


def test_bfloat16_thoughts_are_summed_in_float32() -> None:
    # In bfloat16 a sum of ones stops at 256.
    old = torch.ones(1, 1, 1, 1000, dtype=torch.bfloat16)

    change, norm = squared_change(2 * old, old, torch.ones(1, 1, dtype=torch.bool))

    assert (change.dtype, norm.item(), change.item()) == (torch.float32, 1000.0, 1000.0)


def test_the_residual_is_a_statistic_without_gradient() -> None:
    new = torch.randn(1, 1, 1, 2, requires_grad=True)

    change, norm = squared_change(new, 2 * new, torch.ones(1, 1, dtype=torch.bool))

    assert not change.requires_grad
    assert not norm.requires_grad
