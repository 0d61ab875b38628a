"""Attention to the keys of several steps: fused and joined, by products, and by one dense mask."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_ext.ponder.attention import Segments, attention_to_parts, dense_bias_attention
from megatron_ext.ponder.step_attention import attention_to_steps
from tests.support.document_kernel import kernel_for_documents

NUM_STEPS, BATCH, HEADS, ROWS, SIZE = 3, 2, 4, 11, 6
SEGMENTS: Segments = (((0, 4), (4, 11)), ((0, 11),))
# Of which tokens ran a step, fewer with each; one sequence has a step that only its last tokens ran.
RAN = torch.tensor(
    [
        [[1] * ROWS] * BATCH,
        [[1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 1], [0] * 8 + [1, 1, 1]],
        [[1, 0, 0, 1, 0, 0, 1, 0, 0, 1, 1], [0] * 9 + [1, 1]],
    ]
).bool()


def rows(groups: int, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return queries of the last step, and keys and values of all steps."""
    generator = torch.Generator().manual_seed(3)

    def draw(heads: int) -> Tensor:
        drawn = torch.randn(BATCH, heads, ROWS, SIZE, dtype=torch.float64, generator=generator)
        return drawn.to(dtype).requires_grad_()

    return (
        draw(HEADS),
        [draw(groups) for _ in range(NUM_STEPS)],
        [draw(groups) for _ in range(NUM_STEPS)],
    )


def dense(query: Tensor, keys: list[Tensor], values: list[Tensor], segments: Segments | None) -> Tensor:
    """All keys end to end, under one mask."""
    causal = torch.ones(ROWS, ROWS, dtype=torch.bool).tril().expand(BATCH, -1, -1)
    if segments is not None:
        number = torch.zeros(BATCH, ROWS, dtype=torch.int64)
        for b, runs in enumerate(segments):
            for index, (start, stop) in enumerate(runs):
                number[b, start:stop] = index
        causal = causal & (number.unsqueeze(2) == number.unsqueeze(1))
    visible = torch.cat([causal & ran.unsqueeze(1) for ran in RAN], dim=2)
    return dense_bias_attention(query, torch.cat(keys, 2), torch.cat(values, 2), visible=visible)


def ran_last() -> Tensor:
    """Queries that count, [B, 1, S, 1]: those of tokens that ran the last step."""
    return RAN[-1][:, None, :, None]


def gradients(output: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    # A gradient only where a token ran the step, as in the model.
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)
    return torch.autograd.grad((output * weight * ran_last()).sum(), inputs)


@pytest.mark.parametrize("backend", [None, SDPBackend.MATH], ids=["joined", "products"])
@pytest.mark.parametrize("groups", [HEADS, 2])
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "packed"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)]
)
def test_result_and_gradients_are_those_of_one_dense_mask(
    backend: Any, groups: int, segments: Segments | None, dtype: torch.dtype, tolerance: float
) -> None:
    query, keys, values = rows(groups, dtype)
    inputs = [query, *keys, *values]
    with sdpa_kernel(backend or SDPBackend.FLASH_ATTENTION):
        found = attention_to_steps(query, keys, values, [None, *RAN[1:]], segments=segments)
        found_gradients = gradients(found, inputs)

    exact = [one.detach().double().requires_grad_() for one in inputs]
    expected = dense(exact[0], exact[1 : 1 + NUM_STEPS], exact[1 + NUM_STEPS :], segments)
    expected_gradients = gradients(expected, exact)

    assert found.dtype == dtype
    assert bool(torch.isfinite(found).all())
    scale = expected.abs().max()
    assert float(((found.double() - expected) * ran_last()).abs().max() / scale) < tolerance
    for one, other in zip(found_gradients, expected_gradients, strict=True):
        assert float((one.double() - other).abs().max() / other.abs().max()) < tolerance


@pytest.mark.parametrize("groups", [HEADS, 2])
def test_one_call_for_the_documents_of_a_step_equals_the_loop(groups: int) -> None:
    query, keys, values = rows(groups, torch.float64)
    inputs = [query, *keys, *values]
    expected = attention_to_steps(query, keys, values, [None, *RAN[1:]], segments=SEGMENTS)

    with kernel_for_documents() as calls:
        found = attention_to_steps(query, keys, values, [None, *RAN[1:]], segments=SEGMENTS)
        found_gradients = gradients(found, inputs)

    assert calls == [3] * NUM_STEPS
    torch.testing.assert_close(found * ran_last(), expected * ran_last())
    for one, other in zip(found_gradients, gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_keys_of_tokens_that_did_not_run_a_step_have_no_influence_and_no_gradient(backend: Any) -> None:
    query, keys, values = rows(HEADS, torch.float64)
    with sdpa_kernel(backend):
        found = attention_to_steps(query, keys, values, [None, *RAN[1:]])
        absent = [~ran[:, None, :, None] for ran in RAN]
        changed = [
            [torch.where(hidden, 1e3 * one, one) for hidden, one in zip(absent, of_step, strict=True)]
            for of_step in (keys, values)
        ]
        again = attention_to_steps(query, *changed, [None, *RAN[1:]])
        of_inputs = gradients(found, [*keys, *values])

    assert torch.equal(found * ran_last(), again * ran_last())
    for gradient, hidden in zip(of_inputs, [*absent, *absent], strict=True):
        assert float((gradient * hidden).abs().max()) == 0.0


def test_a_single_step_is_plain_causal_attention() -> None:
    query, keys, values = rows(HEADS, torch.float32)

    found = attention_to_steps(query, keys[:1], values[:1], [None])

    plain = torch.nn.functional.scaled_dot_product_attention(query, keys[0], values[0], is_causal=True)
    assert torch.equal(found, plain)


@pytest.mark.parametrize("num_queries", [1, 3])
@pytest.mark.parametrize("groups", [HEADS, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_stored_parts_are_attended_to_as_one(num_queries: int, groups: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)

    def draw(heads: int, number: int) -> Tensor:
        drawn = torch.randn(BATCH, heads, number, SIZE, dtype=torch.float64, generator=generator)
        return drawn.to(dtype)

    sizes = (5, 2, 7)
    query = draw(HEADS, num_queries)
    keys, values = [draw(groups, size) for size in sizes], [draw(groups, size) for size in sizes]
    visible = [torch.rand(BATCH, num_queries, size, generator=generator) < 0.6 for size in sizes]
    visible[0][..., 0] = True

    found = attention_to_parts(query, keys, values, [visible[0], None, visible[2]])

    visible[1] = torch.ones_like(visible[1])
    exact = [one.double() for one in (query, torch.cat(keys, 2), torch.cat(values, 2))]
    expected = dense_bias_attention(*exact, visible=torch.cat(visible, dim=2))
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)
    assert not math.isnan(float(found.sum()))


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("segments", [None, (((0, 7), (7, 40)), ((0, 40),))], ids=["one document", "packed"])
def test_a_gpu_computes_the_same(dtype: torch.dtype, tolerance: float, segments: Segments | None) -> None:
    generator = torch.Generator().manual_seed(5)
    size, steps = 64, 3
    drawn = torch.randn(2 * steps + 1, BATCH, HEADS, 40, size, dtype=torch.float64, generator=generator)
    ran = torch.rand(steps - 1, BATCH, 40, generator=generator) < 0.6

    def compute(dtype: torch.dtype, device: str) -> list[Tensor]:
        inputs = [one.to(device, dtype).requires_grad_() for one in drawn]
        masks = [None, *(one.to(device) for one in ran)]
        keys, values = inputs[1 : 1 + steps], inputs[1 + steps :]
        output = attention_to_steps(inputs[0], keys, values, masks, segments=segments)
        counted = output * ran[-1][:, None, :, None].to(device)
        return [counted, *torch.autograd.grad(counted.sum(), inputs)]

    expected, found = compute(torch.float64, "cpu"), compute(dtype, "cuda")

    for one, other in zip(found, expected, strict=True):
        assert float((one.cpu().double() - other).abs().max() / other.abs().max()) < tolerance
