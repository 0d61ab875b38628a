import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from megatron_ext.ponder import attention
from megatron_ext.ponder.attention import (
    dense_bias_attention,
    extended_keys,
    extended_size,
    extended_values,
    key_weighted_attention,
    stored_attention,
)
from megatron_ext.ponder.halting import PRUNED_LOG_MASS
from megatron_ext.ponder.masks import document_segments, scale_segments, visible_rows

NAMES = ("query", "key", "value", "log_weight")
Attention = Callable[..., Tensor]
# bfloat16 holds 8 bits, so results are rounded by 2**-9 of their size; the rest is for sums of rounded terms.
BFLOAT16_BAND = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What goes into one attention call, and the gradient that comes back into it."""

    tensors: tuple[Tensor, Tensor, Tensor, Tensor]
    upstream: Tensor

    def to(self, dtype: torch.dtype) -> "Inputs":
        """Round all but the log weights, which are float32 beside bfloat16 keys."""
        *rounded, log_weight = self.tensors
        weight_dtype = torch.promote_types(dtype, torch.float32)
        return Inputs(
            tensors=(*(x.to(dtype) for x in rounded), log_weight.to(weight_dtype)),
            upstream=self.upstream.to(dtype),
        )


def random_inputs(
    *, rows: int = 12, heads: int = 4, groups: int = 2, head_size: int = 6, batch: int = 2, scale: float = 1.0
) -> Inputs:
    """Float64 numbers that float32 and bfloat16 hold exactly, but for the log weights."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape).bfloat16().double()

    log_weight = scale * torch.rand(batch, rows).log().double()
    return Inputs(
        tensors=(
            draw(batch, heads, rows, head_size),
            draw(batch, groups, rows, head_size),
            draw(batch, groups, rows, head_size),
            log_weight,
        ),
        upstream=draw(batch, heads, rows, head_size),
    )


def forward_and_gradients(attend: Attention, inputs: Inputs, **options: object) -> list[Tensor]:
    """Output and the gradients of q, k, v and log w."""
    leaves = [x.clone().requires_grad_() for x in inputs.tensors]
    output = attend(*leaves, **options)
    return [output.detach(), *torch.autograd.grad(output, leaves, inputs.upstream)]


def worst_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Largest difference over the largest magnitude, over output and gradients."""
    assert [x.shape for x in found] == [x.shape for x in exact]
    errors = [(a.double() - b).abs().max() / b.abs().max() for a, b in zip(found, exact, strict=True)]
    return max(error.item() for error in errors)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-6)])
def test_it_equals_the_dense_twin(groups: int, dtype: torch.dtype, tolerance: float) -> None:
    inputs = random_inputs(groups=groups)

    found = forward_and_gradients(key_weighted_attention, inputs.to(dtype))

    exact = forward_and_gradients(dense_bias_attention, inputs)
    assert worst_error(found, exact) < tolerance


def test_a_wider_scale_divides_the_products_and_leaves_the_weights() -> None:
    inputs = random_inputs()
    query, key, value, log_weight = inputs.tensors

    found = forward_and_gradients(key_weighted_attention, inputs, scale_extra=8)

    assert worst_error(found, forward_and_gradients(dense_bias_attention, inputs, scale_extra=8)) < 1e-13
    # The same by narrower queries, at the usual scale.
    narrowed = query * (6 / (6 + 8)) ** 0.5
    torch.testing.assert_close(found[0], key_weighted_attention(narrowed, key, value, log_weight))
    unweighted = key_weighted_attention(query, key, value, scale_extra=8)
    torch.testing.assert_close(unweighted, key_weighted_attention(narrowed, key, value))


def test_stored_keys_have_the_scale_that_they_are_read_with() -> None:
    query, key, value, log_weight = random_inputs().tensors
    size = extended_size(6, torch.float64, torch.float64)
    keys = extended_keys(key, log_weight.unsqueeze(1), size, scale_extra=8)

    found = stored_attention(query, keys, extended_values(value, size), causal=True, scale_extra=8)

    torch.testing.assert_close(found, key_weighted_attention(query, key, value, log_weight, scale_extra=8))


@pytest.mark.parametrize("groups", [2, 4])
def test_bfloat16_stays_within_its_band_of_the_exact_result(groups: int) -> None:
    # Log weights as the halting of trained models gives them, down to the clamp at ln 1e-9 = -20.7.
    inputs = random_inputs(rows=48, groups=groups, head_size=16, scale=4.0).to(torch.bfloat16)

    found = forward_and_gradients(key_weighted_attention, inputs)

    exact = forward_and_gradients(dense_bias_attention, inputs.to(torch.float64))
    assert worst_error(found, exact) < BFLOAT16_BAND


def near_weights() -> Inputs:
    """Keys that differ by their log weights alone, close to the clamp, where bfloat16 has steps of 1/8."""
    rows, head_size = 32, 16
    log_weight = -20.7 + torch.rand(1, rows, generator=torch.Generator().manual_seed(3)).double()
    value = torch.randn(1, 1, rows, head_size).bfloat16().double()
    nothing = torch.zeros(1, 1, rows, head_size, dtype=torch.float64)
    return Inputs(tensors=(nothing, nothing, value, log_weight), upstream=torch.ones_like(value))


def test_bfloat16_keys_need_the_remainder_in_a_second_column(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = near_weights()
    exact = dense_bias_attention(*inputs.tensors)

    def error() -> float:
        return worst_error([key_weighted_attention(*inputs.to(torch.bfloat16).tensors)], [exact])

    assert error() < BFLOAT16_BAND
    monkeypatch.setattr(attention, "weight_columns", lambda weight, dtype: weight.to(dtype).unsqueeze(-1))
    assert error() > 2 * BFLOAT16_BAND


def test_two_columns_give_the_weight_its_gradient_once() -> None:
    inputs = random_inputs(rows=24, head_size=16)

    (*_, found) = forward_and_gradients(key_weighted_attention, inputs.to(torch.bfloat16))

    (*_, exact) = forward_and_gradients(dense_bias_attention, inputs)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        (found.double() * exact).sum() / exact.square().sum(), torch.tensor(1.0).double(), rtol=0, atol=0.02
    )


def test_gradients_against_finite_differences() -> None:
    inputs = random_inputs(rows=4, heads=2, groups=1, head_size=3, batch=1)

    assert torch.autograd.gradcheck(key_weighted_attention, [x.requires_grad_() for x in inputs.tensors])


def test_without_weights_it_is_plain_causal_attention() -> None:
    query, key, value, _ = random_inputs(groups=4).tensors

    plain = functional.scaled_dot_product_attention(query, key, value, is_causal=True)

    assert torch.equal(key_weighted_attention(query, key, value), plain)
    zeros = torch.zeros(2, 12, dtype=torch.float64)
    torch.testing.assert_close(
        key_weighted_attention(query, key, value, zeros), plain, rtol=1e-12, atol=1e-12
    )


def test_a_column_of_weight_w_counts_w_times() -> None:
    # Two equal columns of weight 1 and a third of weight 2 share the attention 1 : 1 : 2.
    query = key = torch.zeros(1, 1, 3, 2, dtype=torch.float64)
    value = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64).reshape(1, 1, 3, 1).expand(-1, -1, -1, 2)
    log_weight = torch.tensor([[0.0, 0.0, math.log(2.0)]], dtype=torch.float64)

    attended = key_weighted_attention(query, key, value, log_weight)

    torch.testing.assert_close(attended[0, 0, :, 0], torch.tensor([1.0, 1.5, 11 / 4], dtype=torch.float64))


@settings(max_examples=25)
@given(
    tokens=st.lists(st.integers(-1, 3), min_size=2, max_size=6).map(sorted),
    num_slots=st.integers(1, 3),
    grouped=st.booleans(),
)
def test_packed_documents_equal_the_dense_mask(tokens: list[int], num_slots: int, grouped: bool) -> None:
    document_ids = torch.tensor([tokens, [0] * (len(tokens) - 1) + [1]])
    inputs = random_inputs(rows=len(tokens) * num_slots, groups=2 if grouped else 4)

    found = forward_and_gradients(
        key_weighted_attention, inputs, segments=scale_segments(document_segments(document_ids), num_slots)
    )

    exact = forward_and_gradients(dense_bias_attention, inputs, visible=visible_rows(document_ids, num_slots))
    for found_one, exact_one in zip(found, exact, strict=True):
        torch.testing.assert_close(found_one, exact_one, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_pruned_columns_are_as_good_as_removed(dtype: torch.dtype, tolerance: float) -> None:
    inputs = random_inputs(rows=10).to(dtype)
    query, key, value, log_weight = inputs.tensors
    kept = torch.tensor([0, 1, 4, 5, 8])
    pruned = torch.full_like(log_weight, PRUNED_LOG_MASS)
    pruned[:, kept] = log_weight[:, kept]

    masked = key_weighted_attention(query, key, value, pruned)[:, :, kept]

    removed = key_weighted_attention(
        query[:, :, kept], key[:, :, kept], value[:, :, kept], log_weight[:, kept]
    )
    assert torch.isfinite(masked).all()
    torch.testing.assert_close(masked, removed, rtol=0, atol=tolerance)


def test_columns_without_weight_have_no_influence_and_no_gradient() -> None:
    query, key, value, log_weight = random_inputs(rows=6).to(torch.float32).tensors
    log_weight[:, 3] = PRUNED_LOG_MASS
    other_key, other_value = key.clone(), value.clone()
    other_key[:, :, 3], other_value[:, :, 3] = torch.randn(2, 2, 2, 6)
    other_key.requires_grad_()

    before = key_weighted_attention(query, key, value, log_weight)
    after = key_weighted_attention(query, other_key, other_value, log_weight)

    assert torch.equal(before, after)
    after.sum().backward()
    assert other_key.grad is not None
    assert (other_key.grad[:, :, 3] == 0).all()
    assert (other_key.grad[:, :, 2] != 0).any()


def test_the_newest_row_alone_sees_all_columns() -> None:
    query, key, value, log_weight = random_inputs().tensors

    last = key_weighted_attention(query[:, :, -1:], key, value, log_weight, causal=False)

    whole = key_weighted_attention(query, key, value, log_weight)
    torch.testing.assert_close(last, whole[:, :, -1:], rtol=1e-12, atol=1e-12)
