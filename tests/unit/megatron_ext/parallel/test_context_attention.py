"""Attention over context-parallel ranks against one dense mask, with gradients, all ranks in one process."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_ext.parallel.context_attention import (
    SharedRows,
    attention_over_ranks,
    last_slot_over_ranks,
)
from megatron_ext.ponder.attention import Segments, dense_bias_attention, extended_attention
from megatron_ext.ponder.chunks import chunks_of_documents, own_chunks, pieces_of_rank, whole_from_ranks
from megatron_ext.ponder.masks import scale_segments
from tests.support.document_kernel import kernel_for_documents

BATCH, HEADS, ROWS, SIZE = 2, 4, 24, 16
SCALED_SIZE = 9
SEGMENTS: Segments = (((0, 5), (5, 6), (6, 24)), ((0, 24),))


@dataclass
class Together:
    """The exchange of a rank, which knows the values of all of them and notes what is to be added up."""

    rank: int
    size: int
    whole: Tensor
    added: list[Tensor] = field(default_factory=list)

    def gather(self, own: Tensor) -> Tensor:
        assert torch.equal(own, own_chunks(self.whole, self.rank, self.size, dim=0))
        return self.whole

    def add_up(self, whole: Tensor) -> Tensor:
        self.added.append(whole)
        return torch.zeros_like(own_chunks(whole, self.rank, self.size, dim=0))


def drawn(
    groups: int, num_steps: int, dtype: torch.dtype, device: str = "cpu"
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return queries, [R, B, A, d], and keys and values of each step, [R, B, G, d]."""
    generator = torch.Generator().manual_seed(5)

    def draw(heads: int) -> Tensor:
        values = torch.randn(ROWS, BATCH, heads, SIZE, dtype=torch.float64, generator=generator)
        return values.to(device, dtype)

    return draw(HEADS), [draw(groups) for _ in range(num_steps)], [draw(groups) for _ in range(num_steps)]


def ran_steps(num_steps: int) -> list[Tensor | None]:
    """Return which tokens ran each step, fewer with each; the first of a document always has keys."""
    generator = torch.Generator().manual_seed(6)
    return [None, *(torch.rand(BATCH, ROWS, generator=generator) < 0.6 for _ in range(num_steps - 1))]


def by_ranks(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    ran: Sequence[Tensor | None],
    weight: Tensor,
    *,
    size: int,
    segments: Segments | None,
) -> list[Tensor]:
    """Return the result of all ranks, [R, B, A, d], and the gradients of queries, keys and values."""
    results, of_queries, of_whole = [], [], []
    whole = torch.stack([*keys, *values], dim=1)
    for rank in range(size):
        pieces, chunks = (
            cut(rank, size, batch_size=BATCH, num_rows=ROWS, segments=segments)
            for cut in (pieces_of_rank, chunks_of_documents)
        )
        exchange = Together(rank, size, whole)
        own = [own_chunks(x, rank, size, dim=0).requires_grad_() for x in (query, *keys, *values)]
        found = attention_over_ranks(
            own[0],
            own[1 : 1 + len(keys)],
            own[1 + len(keys) :],
            rows=SharedRows(exchange=exchange, pieces=pieces, chunks=chunks),
            scaled_size=SCALED_SIZE,
            ran=ran,
        ).permute(2, 0, 1, 3)
        (found * own_chunks(weight, rank, size, dim=0)).sum().backward()
        results.append(found.detach())
        of_queries.append(own[0].grad)
        of_whole += exchange.added
    of_keys_and_values = torch.stack(of_whole).sum(dim=0).unbind(1)
    of_rows = (whole_from_ranks(torch.cat(parts), size) for parts in (results, of_queries))
    return [*of_rows, *of_keys_and_values]


def in_one(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    ran: Sequence[Tensor | None],
    weight: Tensor,
    *,
    segments: Segments | None,
) -> list[Tensor]:
    """The same by one dense mask in float64."""
    inputs = [x.double().requires_grad_() for x in (query, *keys, *values)]
    # [R, B, A, d] -> [B, A, R, d]
    heads = [x.permute(1, 2, 0, 3) for x in inputs]
    num_steps = len(keys)
    visible = torch.ones(ROWS, ROWS, dtype=torch.bool).tril().expand(BATCH, -1, -1).clone()
    for b, runs in enumerate(segments or ()):
        for start, stop in runs:
            visible[b, stop:, start:stop] = False
    seen = [visible if tokens is None else visible & tokens.unsqueeze(1) for tokens in ran]
    found = dense_bias_attention(
        heads[0],
        torch.cat(heads[1 : 1 + num_steps], dim=2),
        torch.cat(heads[1 + num_steps :], dim=2),
        visible=torch.cat(seen, dim=2),
        scale_extra=SCALED_SIZE - SIZE,
    ).permute(2, 0, 1, 3)
    gradients = torch.autograd.grad((found * weight.double()).sum(), inputs)
    return [found.detach(), *gradients]


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], ids=["fused", "products"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("groups", [HEADS, 2])
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "packed"])
@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6), (torch.bfloat16, 3e-2)]
)
def test_result_and_gradients_are_those_of_one_dense_mask(
    backend: Any,
    size: int,
    groups: int,
    segments: Segments | None,
    num_steps: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    rows, ran = drawn(groups, num_steps, dtype), ran_steps(num_steps)
    weight = torch.linspace(-1, 1, ROWS * BATCH * HEADS * SIZE).reshape(ROWS, BATCH, HEADS, SIZE).to(dtype)

    with sdpa_kernel(backend):
        found = by_ranks(*rows, ran, weight, size=size, segments=segments)

    expected = in_one(*rows, ran, weight, segments=segments)
    assert len(found) == len(expected) == 2 + 2 * num_steps
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("groups", [HEADS, 2])
@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
def test_one_call_for_the_documents_of_a_chunk_equals_the_loop(
    size: int, groups: int, num_steps: int, dtype: torch.dtype, tolerance: float
) -> None:
    rows, ran = drawn(groups, num_steps, dtype), ran_steps(num_steps)
    weight = torch.linspace(-1, 1, ROWS * BATCH * HEADS * SIZE).reshape(ROWS, BATCH, HEADS, SIZE).to(dtype)
    expected = by_ranks(*rows, ran, weight, size=size, segments=SEGMENTS)

    with kernel_for_documents() as calls:
        found = by_ranks(*rows, ran, weight, size=size, segments=SEGMENTS)

    # Of each rank, chunk, sequence and step, however many documents there are.
    assert len(calls) == size * 2 * BATCH * num_steps
    assert max(calls) > 1
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert (one - other).abs().max() <= tolerance * other.abs().max()


@pytest.mark.parametrize("kernel", [nullcontext, kernel_for_documents], ids=["loop", "one call"])
@pytest.mark.parametrize("groups", [HEADS, 2])
def test_the_last_slot_of_each_token_attends_as_among_all_rows(kernel: Any, groups: int) -> None:
    num_slots, size = 3, 2
    query, keys, values = drawn(groups, num_slots, torch.float64)
    # [S, n, B, A, d], of which the last slots count
    queries = torch.stack([torch.zeros_like(query)] * (num_slots - 1) + [query], dim=1).requires_grad_()
    key, value = (torch.stack(one, dim=1).requires_grad_() for one in (keys, values))
    weight = torch.linspace(-1, 1, query.numel(), dtype=torch.float64).reshape(query.shape)
    rows = [x.flatten(0, 1).permute(1, 2, 0, 3) for x in (queries, key, value)]
    attended = extended_attention(
        *rows, scaled_size=SCALED_SIZE, segments=scale_segments(SEGMENTS, num_slots)
    )
    # [B, A, S * n, d] -> [S, B, A, d]
    expected = attended.unflatten(2, (ROWS, num_slots))[:, :, :, -1].permute(2, 0, 1, 3)
    of_query, *expected_gradients = torch.autograd.grad((expected * weight).sum(), (queries, key, value))

    whole, results, gradients, added = torch.cat([*keys, *values]).unflatten(0, (-1, ROWS)), [], [], []
    for rank in range(size):
        pieces, chunks = (
            cut(rank, size, batch_size=BATCH, num_rows=ROWS, segments=SEGMENTS)
            for cut in (pieces_of_rank, chunks_of_documents)
        )
        exchange = Together(rank, size, whole.transpose(0, 1))
        of_tokens = SharedRows(exchange=exchange, pieces=pieces, chunks=chunks)
        own = [own_chunks(x.detach(), rank, size, dim=0).requires_grad_() for x in (queries, key, value)]
        with kernel():
            found = last_slot_over_ranks(
                *(x.flatten(0, 1) for x in own),
                num_slots=num_slots,
                rows=SharedRows(exchange=exchange, pieces=(), chunks=(), of_tokens=of_tokens),
                scaled_size=SCALED_SIZE,
            ).permute(2, 0, 1, 3)
            (found * own_chunks(weight, rank, size, dim=0)).sum().backward()
        results.append(found.detach())
        gradients.append(own[0].grad)
        added += exchange.added

    torch.testing.assert_close(whole_from_ranks(torch.cat(results), size), expected.detach())
    torch.testing.assert_close(whole_from_ranks(torch.cat(gradients), size), of_query)
    # [S, 2 n, B, G, d]
    torch.testing.assert_close(torch.stack(added).sum(dim=0), torch.cat(expected_gradients, dim=1))


@pytest.mark.gpu
@pytest.mark.parametrize("groups", [HEADS, 2])
@pytest.mark.parametrize("segments", [None, SEGMENTS], ids=["one document", "packed"])
@pytest.mark.parametrize("num_steps", [1, 3])
def test_a_gpu_computes_the_same(groups: int, segments: Segments | None, num_steps: int) -> None:
    rows = drawn(groups, num_steps, torch.bfloat16, "cuda")
    ran = [None if tokens is None else tokens.cuda() for tokens in ran_steps(num_steps)]
    weight = torch.linspace(-1, 1, ROWS * BATCH * HEADS * SIZE).reshape(ROWS, BATCH, HEADS, SIZE)

    found = by_ranks(*rows, ran, weight.to("cuda", torch.bfloat16), size=2, segments=segments)

    host = [[x.cpu() for x in of_steps] for of_steps in rows[1:]]
    expected = in_one(rows[0].cpu(), *host, ran_steps(num_steps), weight, segments=segments)
    for one, other in zip(found, expected, strict=True):
        assert (one.cpu().double() - other).abs().max() <= 3e-2 * other.abs().max()
