"""Speed of the weighted-key attention: relative to a dense bias, and by documents in a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from megatron_ext.ponder.attention import dense_bias_attention, key_weighted_attention
from pipeline.shared.progress import Progress
from tests.bench.timing import median_seconds

Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSizes:
    """Sizes of the inputs: B sequences of R rows, A query heads over G key heads of d channels."""

    batch_size: int
    num_rows: int
    num_heads: int
    num_query_groups: int
    head_size: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTimes:
    """Median seconds of forward and backward, and the difference between the two computations.

    Attributes:
        weighted_seconds: keys augmented by a column for the weights.
        dense_seconds: a dense bias added to the logits.
        largest_difference: over the output and all gradients, relative to the largest dense value of each.
    """

    weighted_seconds: float
    dense_seconds: float
    largest_difference: float

    @property
    def speedup(self) -> float:
        """How many times faster the weighted keys are."""
        return self.dense_seconds / self.weighted_seconds


def time_attention(
    sizes: AttentionSizes,
    *,
    repeats: int,
    device: torch.device,
    seed: int = 1234,
    progress: Progress | None = None,
) -> AttentionTimes:
    """Time both attentions, forward and backward, on the same inputs."""
    inputs = random_inputs(sizes, device=device, seed=seed)
    weighted = forward_and_backward(key_weighted_attention, inputs)
    dense = forward_and_backward(dense_bias_attention, inputs)
    seconds = median_seconds(
        {
            "weighted": lambda: forward_and_backward(key_weighted_attention, inputs),
            "dense": lambda: forward_and_backward(dense_bias_attention, inputs),
        },
        repeats=repeats,
        device=device,
        progress=progress,
    )
    return AttentionTimes(
        weighted_seconds=seconds["weighted"],
        dense_seconds=seconds["dense"],
        largest_difference=max(map(_relative_difference, weighted, dense)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentTimes:
    """Median seconds of forward and backward over rows of equal documents, and what each document costs.

    Attributes:
        num_documents: of a row.
        batch_size: rows.
        packed_seconds: documents one after another in rows, as in training.
        batched_seconds: the same documents as sequences of a batch, which has as many pairs and is one call.
        largest_difference: of the two, over the output and all gradients, as in :class:`AttentionTimes`.
    """

    num_documents: int
    batch_size: int
    packed_seconds: float
    batched_seconds: float
    largest_difference: float

    @property
    def seconds_per_document(self) -> float:
        """The price of a document: what packing adds, over all documents of the batch."""
        return (self.packed_seconds - self.batched_seconds) / (self.batch_size * self.num_documents)


def time_documents(
    sizes: AttentionSizes,
    counts: Sequence[int],
    *,
    repeats: int,
    device: torch.device,
    seed: int = 1234,
    progress: Progress | None = None,
) -> list[DocumentTimes]:
    """Time rows of so many documents, forward and backward, in turns.

    Args:
        sizes: of the rows.
        counts: documents of a row, divisors of its length.
        repeats, device, seed, progress: as for :func:`time_attention`.
    """
    inputs = random_inputs(sizes, device=device, seed=seed)
    ways: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
    for count in counts:
        ways[f"packed {count}"] = partial(forward_and_backward, _packed(sizes, count), inputs)
        apart = tuple(_as_sequences(x, count).contiguous() for x in inputs)
        ways[f"batched {count}"] = partial(forward_and_backward, key_weighted_attention, apart)
    seconds = median_seconds(ways, repeats=repeats, device=device, progress=progress)
    return [
        DocumentTimes(
            num_documents=count,
            batch_size=sizes.batch_size,
            packed_seconds=seconds[f"packed {count}"],
            batched_seconds=seconds[f"batched {count}"],
            largest_difference=_difference_of_packing(ways, count),
        )
        for count in counts
    ]


def _packed(sizes: AttentionSizes, num_documents: int) -> Attention:
    length = sizes.num_rows // num_documents
    runs = tuple((start, start + length) for start in range(0, sizes.num_rows, length))
    return partial(key_weighted_attention, segments=(runs,) * sizes.batch_size)


def _as_sequences(values: Tensor, num_documents: int) -> Tensor:
    """Turn [B, A, R, d] or [B, R] into [B * documents, ...] with the rows of a document each."""
    of_rows = values if values.dim() == 2 else values.transpose(1, 2)
    # [B, R, ...] -> [B * documents, rows of a document, ...]
    apart: Tensor = of_rows.unflatten(1, (num_documents, -1)).flatten(0, 1)
    return apart if values.dim() == 2 else apart.transpose(1, 2)


def _difference_of_packing(ways: Mapping[str, Callable[[], tuple[Tensor, ...]]], count: int) -> float:
    packed, batched = ways[f"packed {count}"](), ways[f"batched {count}"]()
    return max(_relative_difference(_as_sequences(x, count), y) for x, y in zip(packed, batched, strict=True))


def random_inputs(
    sizes: AttentionSizes, *, device: torch.device, seed: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw query [B, A, R, d], key and value [B, G, R, d], and log weights [B, R] of at most 0."""
    generator = torch.Generator().manual_seed(seed)
    heads = (sizes.num_heads, sizes.num_query_groups, sizes.num_query_groups)
    query, key, value = (
        torch.randn(sizes.batch_size, number, sizes.num_rows, sizes.head_size, generator=generator)
        for number in heads
    )
    # Tail masses: log weights in float32, whatever the dtype of the keys.
    log_weight = torch.rand(sizes.batch_size, sizes.num_rows, generator=generator).clamp_min(1e-9).log()
    return (
        query.to(device, sizes.dtype),
        key.to(device, sizes.dtype),
        value.to(device, sizes.dtype),
        log_weight.to(device),
    )


def forward_and_backward(attention: Attention, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the output and the gradients of its sum of squares for query, key, value and log weights."""
    query, key, value, log_weight = (tensor.detach().requires_grad_() for tensor in inputs)
    output = attention(query, key, value, log_weight)
    output.float().square().sum().backward()
    return output.detach(), *(
        tensor.grad for tensor in (query, key, value, log_weight) if tensor.grad is not None
    )


def _relative_difference(computed: Tensor, expected: Tensor) -> float:
    largest = expected.float().abs().max()
    return float((computed.float() - expected.float()).abs().max() / largest)
