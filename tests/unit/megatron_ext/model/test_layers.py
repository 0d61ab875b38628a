"""Products that accumulate on the residual, against sums of linear layers."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from megatron_ext.model.layers import add_products
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.parallel.tensor import TensorAxis

ROWS, BATCH, HIDDEN, INNER = 3, 2, 4, 5


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("has_biases", [False, True])
@pytest.mark.parametrize("num_products", [1, 2])
def test_products_add_up_to_those_of_linear_layers(
    groups: ParallelGroups, num_products: int, has_biases: bool
) -> None:
    torch.manual_seed(0)
    residual = random(ROWS, BATCH, HIDDEN)
    layers = [
        SimpleNamespace(
            weight=random(HIDDEN, INNER),
            bias=random(HIDDEN) if has_biases else None,
            gradient_accumulation_fusion=False,
        )
        for _ in range(num_products)
    ]
    products: list[Any] = [(layer, random(ROWS, BATCH, INNER)) for layer in layers]
    used = [x for layer, given in products for x in (given, layer.weight, layer.bias) if x is not None]

    found = add_products(residual, *products, axis=TensorAxis(groups.tp, False))
    wanted = sum(
        (functional.linear(given, layer.weight, layer.bias) for layer, given in products), start=residual
    )

    torch.testing.assert_close(found, wanted)
    along = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, [residual, *used], along),
        torch.autograd.grad(wanted, [residual, *used], along),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_frozen_weights_have_no_gradient(groups: ParallelGroups) -> None:
    residual, given = random(ROWS, BATCH, HIDDEN), random(ROWS, BATCH, INNER)
    layer: Any = SimpleNamespace(
        weight=random(HIDDEN, INNER).detach(),
        bias=random(HIDDEN).detach(),
        gradient_accumulation_fusion=False,
    )

    add_products(residual, (layer, given), axis=TensorAxis(groups.tp, False)).sum().backward()

    assert layer.weight.grad is None
    torch.testing.assert_close(given.grad, layer.weight.sum(dim=0).expand_as(given))
