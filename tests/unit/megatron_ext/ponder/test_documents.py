import pytest
import torch
from torch import Tensor

from megatron_ext.ponder.attention import attend_one_by_one, key_weighted_attention
from megatron_ext.ponder.documents import (
    Documents,
    attend_to_documents,
    forward_over_documents,
    has_kernel_for_documents,
)
from tests.support.document_kernel import kernel_for_documents

SEGMENTS = (((0, 5), (5, 6), (6, 16)), ((0, 16),))
SCALE = 0.3


def tensors(device: str, dtype: torch.dtype, *, size: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, 4, 16, size), (2, 2, 16, size), (2, 2, 16, size))
    return [torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes]


def by_slices(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend to each document alone, in tensors of its own."""
    outputs = []
    for b, runs in enumerate(SEGMENTS):
        parts = [
            key_weighted_attention(*(x[b : b + 1, :, start:stop] for x in (query, key, value)))
            for start, stop in runs
        ]
        outputs.append(torch.cat(parts, dim=2))
    return torch.cat(outputs)


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device)
    return list(torch.autograd.grad((output.flatten() * weights).sum(), inputs))


def test_splitting_equals_slicing_bit_by_bit() -> None:
    inputs = tensors("cpu", torch.float32)
    split = attend_one_by_one(*inputs, SEGMENTS, scale=inputs[0].shape[-1] ** -0.5)
    sliced = by_slices(*inputs)

    assert torch.equal(split, sliced)
    for one, other in zip(gradients(split, inputs), gradients(sliced, inputs), strict=True):
        assert torch.equal(one, other)


def test_the_backward_of_a_split_fills_no_whole_tensors() -> None:
    inputs = tensors("cpu", torch.float32)
    output = attend_one_by_one(*inputs, SEGMENTS, scale=SCALE)

    nodes, names = [output.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None:
            names.add(node.name())
            nodes.extend(parent for parent, _ in node.next_functions)
    assert "SplitWithSizesBackward0" in names
    assert "SliceBackward0" not in names


def test_the_cpu_has_no_kernel_for_documents() -> None:
    assert not has_kernel_for_documents(tensors("cpu", torch.bfloat16)[0])


def test_the_kernel_for_documents_returns_the_shapes_of_its_twin() -> None:
    inputs = tensors("meta", torch.bfloat16)
    output = attend_to_documents(*inputs, SEGMENTS, scale=SCALE)

    assert output.shape == inputs[0].shape
    assert [g.shape for g in gradients(output, inputs)] == [x.shape for x in inputs]


def test_queries_in_the_middle_of_a_document_see_the_keys_before_them() -> None:
    # The second document has one query and one key, the first one three keys for its two queries.
    documents = Documents(queries=(2, 1), keys=(3, 1))
    query, key = torch.zeros(1, 1, 3, 8, dtype=torch.float64), torch.zeros(1, 1, 4, 8, dtype=torch.float64)
    value = torch.tensor([1.0, 3.0, 8.0, 5.0], dtype=torch.float64)[:, None].expand(1, 1, 4, 8)

    with kernel_for_documents():
        output, log_sum = forward_over_documents(query, key, value, documents, scale=SCALE)

    assert output[0, 0, :, 0].tolist() == pytest.approx([2.0, 4.0, 5.0])
    assert log_sum[0, 0].exp().tolist() == pytest.approx([2.0, 3.0, 1.0])


def test_one_call_equals_the_loop_over_documents() -> None:
    inputs = tensors("cpu", torch.float64)
    expected = attend_one_by_one(*inputs, SEGMENTS, scale=SCALE)

    with kernel_for_documents() as calls:
        found = attend_to_documents(*inputs, SEGMENTS, scale=SCALE)
        found_gradients = gradients(found, inputs)

    assert calls == [4]
    torch.testing.assert_close(found, expected)
    for one, other in zip(found_gradients, gradients(expected, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [64, 72, 88, 136])
def test_the_kernel_for_documents_equals_its_twin(size: int) -> None:
    inputs = tensors("cuda", torch.bfloat16, size=size)
    exact = [x.detach().double().requires_grad_() for x in inputs]
    assert has_kernel_for_documents(inputs[0])

    output = attend_to_documents(*inputs, SEGMENTS, scale=SCALE)
    expected = attend_one_by_one(*exact, SEGMENTS, scale=SCALE)
    torch.testing.assert_close(output.double(), expected, rtol=2e-2, atol=2e-2)
    for one, other in zip(gradients(output, inputs), gradients(expected, exact), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=5e-2, atol=5e-2)
