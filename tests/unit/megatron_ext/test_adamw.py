import copy
from typing import Any

import pytest
import torch

from megatron_ext.adamw import AdamW, exact_norm
from megatron_ext.host import prepare_host

SETTINGS: dict[str, Any] = {"lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8}


def _parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(5)
    shapes = [(7, 5), (3,), (1,), (130, 9)]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def _groups(parameters: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": parameters[:2], "weight_decay": 0.1},
        {"params": parameters[2:], "weight_decay": 0.0},
    ]


def _set_gradients(parameters: list[torch.nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def _train(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], steps: range) -> None:
    for step in steps:
        for group in optimizer.param_groups:
            group["lr"] = SETTINGS["lr"] * (1 + step)
        _set_gradients(parameters, seed=step)
        optimizer.step()


def test_adamw_equals_torchs_fused_adamw_bit_for_bit() -> None:
    ours, theirs = _parameters(), _parameters()
    _train(AdamW(_groups(ours), **SETTINGS), ours, range(6))
    _train(torch.optim.AdamW(_groups(theirs), fused=True, **SETTINGS), theirs, range(6))
    assert all(torch.equal(mine, other) for mine, other in zip(ours, theirs, strict=True))


def test_adamw_agrees_with_the_unfused_formula() -> None:
    ours, theirs = _parameters(), _parameters()
    _train(AdamW(_groups(ours), **SETTINGS), ours, range(6))
    _train(torch.optim.AdamW(_groups(theirs), foreach=False, fused=False, **SETTINGS), theirs, range(6))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_first_step_moves_by_the_learning_rate_against_the_gradient() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    parameter.grad = torch.tensor([0.5, -2.0])
    AdamW([parameter], lr=0.1, weight_decay=0.1).step()
    # The decay leaves 0.99 of each; then each moves by 0.1.
    torch.testing.assert_close(parameter.detach(), torch.tensor([0.89, 1.09]))


def test_the_step_lives_in_the_group_and_a_parameter_owns_its_moments_alone() -> None:
    parameters = _parameters()
    optimizer = AdamW([*_groups(parameters), {"params": []}], **SETTINGS)
    _train(optimizer, parameters, range(3))
    assert [group["step"] for group in optimizer.param_groups] == [3, 3, 3]
    assert all(set(state) == {"exp_avg", "exp_avg_sq"} for state in optimizer.state.values())


def test_a_saved_state_continues_as_if_never_interrupted() -> None:
    straight, resumed = _parameters(), _parameters()
    _train(AdamW(_groups(straight), **SETTINGS), straight, range(6))
    first_half = AdamW(_groups(resumed), **SETTINGS)
    _train(first_half, resumed, range(3))
    second_half = AdamW(_groups(resumed), **SETTINGS)
    second_half.load_state_dict(copy.deepcopy(first_half.state_dict()))
    _train(second_half, resumed, range(3, 6))
    assert all(torch.equal(mine, other) for mine, other in zip(straight, resumed, strict=True))


def test_a_parameter_without_gradient_does_not_change() -> None:
    parameters = _parameters()
    optimizer = AdamW(_groups(parameters), **SETTINGS)
    _set_gradients(parameters, seed=0)
    parameters[0].grad = None
    before = parameters[0].detach().clone()
    optimizer.step()
    assert torch.equal(parameters[0], before)
    assert parameters[0] not in optimizer.state


def test_plain_adam_and_closures_raise() -> None:
    with pytest.raises(ValueError, match="decoupled_weight_decay"):
        AdamW(_parameters(), adam_w_mode=False)
    with pytest.raises(ValueError, match="capturable"):
        AdamW(_parameters(), capturable=True)
    with pytest.raises(ValueError, match="closure"):
        AdamW(_parameters()).step(lambda: 0.0)


def test_the_norm_does_not_depend_on_how_a_large_gradient_is_split() -> None:
    gradient = torch.randn(700_000, generator=torch.Generator().manual_seed(3)) * torch.linspace(
        0, 1, 700_000
    )
    nothing = torch.zeros(1)

    whole, _ = exact_norm(65536, nothing, [[gradient]], False)
    split, _ = exact_norm(65536, nothing, [list(gradient.chunk(7))], False)

    assert torch.equal(whole, split)
    torch.testing.assert_close(whole[0].double(), gradient.double().norm(), rtol=1e-7, atol=0)


def test_megatron_clips_by_the_exact_norm() -> None:
    prepare_host()
    from megatron.core.optimizer import clip_grads

    assert clip_grads.l2_norm_impl is exact_norm
