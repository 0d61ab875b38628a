import copy
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_ext.muon import MatrixParts, Muon

SETTINGS: dict[str, Any] = {"momentum": 0.9, "weight_decay": 0.1}
# Two blocks of 4 + 2 + 1 rows: heads of a fused query, key and value.
ROWS = (4, 2, 1)


def matrices(*shapes: tuple[int, int], seed: int = 5) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def train(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * (1 + step)
        for weight, gradient in zip(
            weights, matrices(*(x.shape for x in weights), seed=100 + step), strict=True
        ):
            weight.grad = gradient.detach()
        optimizer.step()


def torchs_muon(weights: list[nn.Parameter], *, ns_steps: int = 5) -> torch.optim.Muon:
    return torch.optim.Muon(weights, adjust_lr_fn="match_rms_adamw", ns_steps=ns_steps, **SETTINGS)


@pytest.mark.parametrize("num_ns_steps", [1, 5])
def test_muon_equals_torchs_bit_for_bit(num_ns_steps: int) -> None:
    shapes = [(7, 5), (3, 11), (8, 8)]
    ours, theirs = matrices(*shapes), matrices(*shapes)
    train(Muon(ours, num_ns_steps=num_ns_steps, **SETTINGS), ours, range(4))
    train(torchs_muon(theirs, ns_steps=num_ns_steps), theirs, range(4))
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def parts_of(weight: Tensor) -> list[Tensor]:
    """Return the matrices of a fused weight, row by row."""
    edges = [0, *accumulate(ROWS)]
    blocks = weight.detach().split(sum(ROWS))
    return [torch.cat([block[start:end] for block in blocks]) for start, end in pairwise(edges)]


def test_parts_of_a_fused_weight_are_orthogonalized_apart() -> None:
    (fused,) = matrices((2 * sum(ROWS), 9))
    fused.matrix_parts = MatrixParts(rows=ROWS, split_dim=0)  # type: ignore[attr-defined]
    apart = [nn.Parameter(part.clone()) for part in parts_of(fused)]
    ours, theirs = Muon([fused], **SETTINGS), torchs_muon(apart)
    for step in range(3):
        (gradient,) = matrices((2 * sum(ROWS), 9), seed=step)
        fused.grad = gradient.detach()
        for weight, part in zip(apart, parts_of(gradient), strict=True):
            weight.grad = part
        ours.step()
        theirs.step()

    assert all(torch.equal(mine, other) for mine, other in zip(parts_of(fused), apart, strict=True))


def test_the_first_step_of_a_square_matrix_moves_it_along_an_orthogonal_one() -> None:
    weight = nn.Parameter(torch.zeros(8, 8))
    (gradient,) = matrices((8, 8))
    weight.grad = gradient.detach()
    Muon([weight], lr=0.5, weight_decay=0.0).step()

    # Five iterations bring singular values between 0.7 and 1.2; the rate is scaled by 0.2 sqrt(8).
    moved = torch.linalg.svdvals(weight.detach()) / (0.5 * 0.2 * 8**0.5)
    assert 0.6 < float(moved.min()) <= float(moved.max()) < 1.3
    assert float((weight * gradient).detach().sum()) < 0


def test_a_weight_without_gradient_and_one_of_zeros_do_not_change_without_decay() -> None:
    weights = matrices((4, 3), (5, 5))
    weights[1].grad = torch.zeros(5, 5)
    before = [weight.detach().clone() for weight in weights]
    optimizer = Muon(weights, weight_decay=0.0)
    optimizer.step()

    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert list(optimizer.state) == [weights[1]]


def test_a_saved_state_continues_as_if_never_interrupted() -> None:
    shapes = [(7, 5), (3, 11)]
    straight, resumed = matrices(*shapes), matrices(*shapes)
    train(Muon(straight, **SETTINGS), straight, range(6))
    first_half = Muon(resumed, **SETTINGS)
    train(first_half, resumed, range(3))
    second_half = Muon(resumed, **SETTINGS)
    second_half.load_state_dict(copy.deepcopy(first_half.state_dict()))
    train(second_half, resumed, range(3, 6))
    assert all(torch.equal(mine, other) for mine, other in zip(straight, resumed, strict=True))


def test_a_closure_raises() -> None:
    with pytest.raises(ValueError, match="closure"):
        Muon(matrices((2, 2))).step(lambda: 0.0)
