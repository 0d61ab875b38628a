import pytest
import torch

from megatron_ext.ponder.attention import dense_bias_attention, key_weighted_attention
from tests.bench.attention import (
    AttentionSizes,
    forward_and_backward,
    random_inputs,
    time_attention,
    time_documents,
)

CPU = torch.device("cpu")


def small(dtype: torch.dtype = torch.float32) -> AttentionSizes:
    return AttentionSizes(
        batch_size=2, num_rows=24, num_heads=4, num_query_groups=2, head_size=6, dtype=dtype
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_both_attentions_compute_the_same(dtype: torch.dtype, tolerance: float) -> None:
    times = time_attention(small(dtype), repeats=1, device=CPU)

    assert times.largest_difference < tolerance
    assert times.weighted_seconds > 0
    assert times.speedup == times.dense_seconds / times.weighted_seconds


def test_the_difference_detects_a_missing_weight() -> None:
    inputs = random_inputs(small(), device=CPU, seed=1)
    weighted = forward_and_backward(key_weighted_attention, inputs)
    unweighted = forward_and_backward(dense_bias_attention, (*inputs[:3], torch.zeros_like(inputs[3])))

    assert (weighted[0] - unweighted[0]).abs().max() > 1e-2


def test_every_gradient_is_computed() -> None:
    results = forward_and_backward(key_weighted_attention, random_inputs(small(), device=CPU, seed=1))

    assert len(results) == 5
    assert all(bool(result.abs().sum() > 0) for result in results)


def test_documents_in_rows_are_those_of_a_batch_and_have_a_price() -> None:
    found = time_documents(small(), [1, 4], repeats=1, device=CPU)

    assert [each.num_documents for each in found] == [1, 4]
    for each in found:
        assert each.largest_difference < 1e-5
        added = each.packed_seconds - each.batched_seconds
        # Of both rows.
        assert each.seconds_per_document == pytest.approx(added / (2 * each.num_documents))


def test_documents_see_less_than_rows() -> None:
    inputs = random_inputs(small(), device=CPU, seed=1)
    apart = key_weighted_attention(*inputs, segments=(((0, 12), (12, 24)),) * 2)

    first = key_weighted_attention(*(x[:, :, :12] for x in inputs[:3]), inputs[3][:, :12])
    whole = key_weighted_attention(*inputs)
    torch.testing.assert_close(apart[:, :, :12], first)
    assert not torch.allclose(apart[:, :, 12:], whole[:, :, 12:], atol=1e-2)
