"""Fused functions of a layer, and whole models of them, against the operations they replace."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from megatron_ext.model.fused_layers import biased_gelu, gated_silu, normed_beside, sum_with_biases
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.config import Method
from tests.support.ponder_models import (
    RECOMPUTE,
    batch_of,
    each_model,
    gradients_of,
    random_tokens,
    tiny_model,
)

ROWS, BATCH, HIDDEN = 5, 2, 6
Outputs = tuple[Tensor, ...]
EPS = 1e-5


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def plain_gated_silu(inner: Tensor) -> Tensor:
    gate, linear = inner.chunk(2, dim=-1)
    return functional.silu(gate) * linear


def norm_of(kind: type[nn.LayerNorm] | type[nn.RMSNorm], weight: Tensor, bias: Tensor | None) -> Any:
    norm: Any = kind(HIDDEN, eps=EPS, dtype=weight.dtype)
    norm.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        norm.bias = nn.Parameter(bias.detach().clone())
    return norm


# Name -> (fused, plain, shapes of the inputs).
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], Sequence[tuple[int, ...]]]] = {
    "gated_silu": (gated_silu, plain_gated_silu, [(ROWS, BATCH, 2 * HIDDEN)]),
    "biased_gelu": (
        biased_gelu,
        lambda inner, bias: functional.gelu(inner + bias),
        [(ROWS, BATCH, HIDDEN), (HIDDEN,)],
    ),
    "sum": (
        sum_with_biases,
        lambda first, second, *biases: first + second + sum(biases),
        [(ROWS, BATCH, HIDDEN), (ROWS, BATCH, HIDDEN), (HIDDEN,), (HIDDEN,)],
    ),
}


def outcome(function: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Values and gradients along a fixed direction."""
    result = function(*inputs)
    results = result if isinstance(result, tuple) else (result,)
    loss = sum(
        (one * torch.linspace(-1, 2, one.numel(), dtype=one.dtype).view_as(one)).sum() for one in results
    )
    assert isinstance(loss, Tensor)
    return [*results, *torch.autograd.grad(loss, inputs)]


def agree(found: Sequence[Tensor], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype
        assert float((one - other).detach().abs().max()) <= tolerance * max(
            float(other.detach().abs().max()), 1.0
        )


each_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)


@pytest.mark.parametrize("name", list(CASES))
@each_dtype
def test_activations_and_sums_are_those_of_separate_operations(name: str, dtype: torch.dtype) -> None:
    fused, plain, shapes = CASES[name]
    inputs = [random(*shape, dtype=dtype) for shape in shapes]

    agree(outcome(fused, inputs), outcome(plain, inputs), dtype)


@pytest.mark.parametrize("kind", [nn.LayerNorm, nn.RMSNorm])
@each_dtype
def test_a_norm_beside_the_residual_has_the_gradients_of_both(
    kind: type[nn.LayerNorm] | type[nn.RMSNorm], dtype: torch.dtype
) -> None:
    residual, weight = random(ROWS, BATCH, HIDDEN, dtype=dtype), random(HIDDEN, dtype=dtype)
    bias = random(HIDDEN, dtype=dtype) if kind is nn.LayerNorm else None
    norm = norm_of(kind, weight, bias)
    inputs = [residual, *norm.parameters()]

    found = outcome(lambda *_: normed_beside(residual, norm), inputs)
    wanted = outcome(lambda *_: (residual, norm(residual)), inputs)

    agree(found, wanted, dtype)


def test_formulas_of_gradients_are_those_of_finite_differences() -> None:
    norm = norm_of(nn.LayerNorm, random(HIDDEN), random(HIDDEN))
    for function, shapes in [(one, shapes) for one, _, shapes in CASES.values()]:
        assert torch.autograd.gradcheck(function, [random(*shape) for shape in shapes])
    assert torch.autograd.gradcheck(lambda x: normed_beside(x, norm), (random(ROWS, BATCH, HIDDEN),))


def test_frozen_weights_have_no_gradient() -> None:
    inner, bias = random(ROWS, BATCH, HIDDEN), random(HIDDEN).detach()
    norm = norm_of(nn.LayerNorm, random(HIDDEN), random(HIDDEN)).requires_grad_(False)

    (
        biased_gelu(inner, bias) + sum(normed_beside(inner, norm)) + sum_with_biases(inner, inner, bias)
    ).sum().backward()

    assert inner.grad is not None
    assert bias.grad is None
    assert norm.weight.grad is None


@each_model
def test_a_model_of_fused_functions_has_the_loss_and_gradients_of_the_plain_one(
    groups: ParallelGroups, method: Method, architecture: str
) -> None:
    batch = batch_of(random_tokens())
    plain, fused = (
        gradients_of(tiny_model(groups, method, architecture, fuses=fuses), batch) for fuses in (False, True)
    )

    assert plain.keys() == fused.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(fused[name], gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("recompute", list(RECOMPUTE))
def test_fused_functions_may_run_again_in_backward(groups: ParallelGroups, recompute: str) -> None:
    batch, method = batch_of(random_tokens()), Method.PONDERLM3
    plain = gradients_of(tiny_model(groups, method, "gpt_neox"), batch)
    again = gradients_of(tiny_model(groups, method, "gpt_neox", fuses=True, **RECOMPUTE[recompute]), batch)

    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-9, atol=1e-9)
