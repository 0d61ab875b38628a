"""Gradients of repeated uses, summed in float32 inside of the products."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from megatron_ext.parallel.weight_gradients import (
    accumulating_linear,
    add_product,
    for_megatron,
    megatron_add_product,
)

OUT, IN, ROWS, USES = 5, 7, 6, 20


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weight_with_sum(dtype: torch.dtype) -> Any:
    weight: Any = nn.Parameter(random(OUT, IN, dtype=dtype))
    weight.main_grad = torch.zeros(OUT, IN)
    return weight


def uses(weight: Tensor, dtype: torch.dtype, *, accumulates: bool) -> Tensor:
    """The sum of many uses of a weight, as the passes of a pondering model make them."""
    total = torch.zeros((), dtype=torch.float64)
    for number in range(USES):
        inputs = random(ROWS, 2, IN, dtype=dtype, seed=number)
        output = accumulating_linear(inputs, weight) if accumulates else nn.functional.linear(inputs, weight)
        total = total + output.double().sum() / (number + 1)
    return total


def exact_gradient(dtype: torch.dtype) -> Tensor:
    weight = random(OUT, IN, dtype=dtype).double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for number in range(USES):
        inputs = random(ROWS, 2, IN, dtype=dtype, seed=number).double()
        total = total + nn.functional.linear(inputs, weight).sum() / (number + 1)
    (gradient,) = torch.autograd.grad(total, weight)
    return gradient


def test_the_sum_of_many_uses_is_nearer_to_float64_than_that_of_autograd() -> None:
    dtype = torch.bfloat16
    weight, plain = weight_with_sum(dtype), nn.Parameter(random(OUT, IN, dtype=dtype))
    uses(weight, dtype, accumulates=True).backward()  # type: ignore[no-untyped-call]
    uses(plain, dtype, accumulates=False).backward()  # type: ignore[no-untyped-call]
    exact = exact_gradient(dtype)

    assert weight.grad is None
    assert plain.grad is not None
    error, usual = (float((each.double() - exact).norm()) for each in (weight.main_grad, plain.grad))
    assert error < 0.5 * usual


def test_in_float32_it_is_the_gradient_of_autograd() -> None:
    weight, plain = weight_with_sum(torch.float32), nn.Parameter(random(OUT, IN, dtype=torch.float32))
    uses(weight, torch.float32, accumulates=True).backward()  # type: ignore[no-untyped-call]
    uses(plain, torch.float32, accumulates=False).backward()  # type: ignore[no-untyped-call]

    torch.testing.assert_close(weight.main_grad, plain.grad)


def test_inputs_and_biases_have_their_gradients_and_a_weight_without_sum_has_its_own() -> None:
    inputs = random(ROWS, 2, IN, dtype=torch.float64).requires_grad_()
    weight: Any = nn.Parameter(random(OUT, IN, dtype=torch.float64))
    bias = nn.Parameter(torch.zeros(OUT, dtype=torch.float64))
    given = (inputs, weight, bias)
    wanted = torch.autograd.grad(nn.functional.linear(*given).square().sum(), given)

    found = torch.autograd.grad(accumulating_linear(*given).square().sum(), given)
    weight.main_grad = torch.zeros(OUT, IN, dtype=torch.float64)
    of_others = torch.autograd.grad(accumulating_linear(*given).square().sum(), [inputs, bias])

    for one, other in zip((*found, *of_others), (*wanted, wanted[0], wanted[2]), strict=True):
        torch.testing.assert_close(one, other)
    weight.main_grad.zero_()
    accumulating_linear(*given).square().sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(weight.main_grad, wanted[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_product_has_the_arguments_of_apex(dtype: torch.dtype) -> None:
    inputs, gradient = random(ROWS, IN, dtype=dtype), random(ROWS, OUT, dtype=dtype)
    total, other = torch.ones(OUT, IN), torch.ones(OUT, IN)

    megatron_add_product(inputs, gradient, total)
    add_product(other, gradient, inputs)

    torch.testing.assert_close(total, 1 + gradient.float().t() @ inputs.float())
    assert torch.equal(total, other)


def test_on_a_device_that_has_it_the_product_is_one_of_mixed_precision() -> None:
    total = torch.zeros(OUT, IN, device="meta")
    gradient, inputs = (torch.zeros(ROWS, size, device="meta", dtype=torch.bfloat16) for size in (OUT, IN))

    add_product(total, gradient, inputs)

    assert total.dtype == torch.float32


def settings_of(weight: Tensor, *, accumulates: bool = True) -> dict[str, Any]:
    return {"weight": weight, "gradient_accumulation_fusion": accumulates}


def test_megatron_gets_a_view_without_its_mark_where_there_is_a_sum() -> None:
    weight = weight_with_sum(torch.float32)
    weight.grad_added_to_main_grad = False
    given = for_megatron(settings_of(weight))

    assert given["gradient_accumulation_fusion"]
    assert given["weight"].main_grad is weight.main_grad
    assert not hasattr(given["weight"], "grad_added_to_main_grad")
    # A gradient that does come back reaches the weight.
    given["weight"].sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones(OUT, IN))


@pytest.mark.parametrize("kind", ["without sum", "frozen"])
def test_megatron_adds_to_no_sum_where_there_is_none(kind: str) -> None:
    weight = weight_with_sum(torch.float32)
    if kind == "frozen":
        weight.requires_grad_(False)
    else:
        weight.main_grad = None
    given = for_megatron(settings_of(weight))

    assert not given["gradient_accumulation_fusion"]
    assert given["weight"] is weight
    assert for_megatron(settings_of(weight, accumulates=False))["weight"] is weight
