"""Cross-entropy and mixtures over a vocabulary that keep no distributions in float32.

They do what :mod:`megatron_ext.parallel.vocabulary` does, for some rows at a time. The cross-entropy keeps
the logits, in their own precision, and makes their gradient in place. A mixture keeps its rows alone:
backward computes the logits again, one product more, and nothing of the size [R, V] exists.

V = padded vocabulary, of which each rank holds V / tp rows; N = rows of a pass, of all sequences; H = hidden
size; n = rows of a part.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from megatron_ext.parallel.weight_gradients import add_product, sum_of_gradients
from megatron_ext.ponder.fusing import fused, wide
from megatron_ext.ponder.parts import parts


class VocabularyAxis(Protocol):
    """What is needed of :class:`megatron_ext.parallel.tensor.TensorAxis`."""

    @property
    def size(self) -> int:
        """Number of ranks on the axis."""
        ...

    @property
    def rank(self) -> int:
        """This rank's coordinate."""
        ...

    def to_partial_use(self, rows: Tensor) -> Tensor:
        """Give every rank all rows."""
        ...

    def from_partial_sums(self, rows: Tensor) -> Tensor:
        """Add up partial rows over ranks and keep this rank's share."""
        ...

    def sum_over_ranks(self, partial: Tensor) -> Tensor:
        """Add up partial values over ranks."""
        ...

    def max_over_ranks(self, values: Tensor) -> Tensor:
        """Return the element-wise maximum over ranks."""
        ...

    def gather_last_dim(self, values: Tensor) -> Tensor:
        """Concatenate values of all ranks along the last dim."""
        ...


def cross_entropy_in_place(logits: Tensor, targets: Tensor, axis: VocabularyAxis) -> Tensor:
    """Return the cross-entropy of each position in nats; backward overwrites the logits.

    Args:
        logits: [S, B, V / tp].
        targets: [S, B] int64, pieces of the vocabulary.
        axis: of the ranks that share the vocabulary.
    Returns:
        [S, B], in at least float32.
    """
    rows = logits.contiguous().flatten(0, 1)
    losses: Tensor = _CrossEntropy.apply(rows, targets.flatten(), axis)  # type: ignore[no-untyped-call]
    return losses.view_as(targets)


def mix_in_parts(
    rows: Tensor,
    head: Tensor,
    embedding: Tensor,
    *,
    num_real: int,
    topk: int | None,
    axis: VocabularyAxis,
    temperature: float = 1.0,
    accumulates: bool = False,
) -> Tensor:
    """Return ``softmax(head h / temperature) . embedding`` for every row (definitions 3.1).

    Args:
        rows: h, [R or R / tp, B, H].
        head, embedding: [V / tp, H].
        num_real: rows of this rank's vocabulary that are not padding.
        topk: mix over this many largest logits only; None for all.
        axis: of the ranks that share the vocabulary.
        temperature: divides the logits.
        accumulates: gradients of head and embedding go to their sums, where they have one.
    Returns:
        [R or R / tp, B, H].
    """
    everywhere = axis.to_partial_use(rows)
    # [R, B, H] -> [N, H]
    flat = everywhere.flatten(0, 1)
    least = None if topk is None else _kth_largest(flat.detach(), head, num_real, temperature, topk, axis)
    product, total, largest = _LocalMixture.apply(  # type: ignore[no-untyped-call]
        flat, head, embedding, least, num_real, temperature, accumulates
    )
    if axis.size > 1:
        # Each rank has exponentiated relative to the largest logit of its own.
        share = torch.exp(largest - axis.max_over_ranks(largest))
        product, total = (product * share).to(product.dtype), total * share
    shape = everywhere.shape[:2]
    total = axis.from_partial_sums(total.unflatten(0, shape))
    product = axis.from_partial_sums(product.unflatten(0, shape))
    return (product / total).to(rows.dtype)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, axis: VocabularyAxis) -> Tensor:
        partition = logits.shape[-1]
        places = targets - axis.rank * partition
        is_own = (places >= 0) & (places < partition)
        places = places.clamp(0, partition - 1)
        found = [_statistics(logits[part], places[part]) for part in parts(*logits.shape)]
        largest, total, own = (torch.cat(column) for column in zip(*found, strict=True))
        overall = axis.max_over_ranks(largest)
        total = axis.sum_over_ranks(total * torch.exp(largest - overall))
        log_total = overall + total.log()
        ctx.save_for_backward(logits, log_total, places, is_own)
        return log_total - axis.sum_over_ranks(torch.where(is_own, own, 0.0))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        logits, *of_rows = ctx.saved_tensors
        for part in parts(*logits.shape):
            _become_gradient(logits[part], *(each[part] for each in (*of_rows, gradient)))
        return logits, None, None


class _LocalMixture(torch.autograd.Function):
    """Products and sums of this rank's weights, and the logits that these are relative to."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        head: Tensor,
        embedding: Tensor,
        least: Tensor | None,
        num_real: int,
        temperature: float,
        accumulates: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.settings, ctx.accumulates = (num_real, temperature), accumulates
        product = rows.new_empty(len(rows), embedding.shape[1])
        totals, largests = [], []
        for part in parts(len(rows), len(head)):
            logits = rows[part] @ head.t()
            weights, total, largest = _weights(logits, _of(least, part), *ctx.settings)
            torch.mm(weights, embedding, out=product[part])
            totals.append(total)
            largests.append(largest)
        largest = torch.cat(largests)
        ctx.save_for_backward(rows, head, embedding, least, largest)
        ctx.mark_non_differentiable(largest)
        return product, torch.cat(totals), largest

    @staticmethod
    def backward(ctx: Any, of_product: Tensor, of_total: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        rows, head, embedding, least, largest = ctx.saved_tensors
        of_rows = torch.empty_like(rows)
        _, needs_head, needs_embedding, *_ = ctx.needs_input_grad
        of_head = _Sum(head, accumulates=ctx.accumulates) if needs_head else None
        of_embedding = _Sum(embedding, accumulates=ctx.accumulates) if needs_embedding else None
        for part in parts(len(rows), len(head)):
            logits = rows[part] @ head.t()
            of_weights = of_product[part] @ embedding.t()
            weights, of_logits = _weights_and_gradient(
                logits, of_weights, of_total[part], largest[part], _of(least, part), *ctx.settings
            )
            torch.mm(of_logits, head, out=of_rows[part])
            if of_head is not None:
                of_head.add(of_logits, rows[part])
            if of_embedding is not None:
                of_embedding.add(weights, of_product[part])
        sums = (each if each is None else each.gradient() for each in (of_head, of_embedding))
        return of_rows, *sums, None, None, None, None


class _Sum:
    """The gradient of a weight as the sum of products of parts: its own sum, or one made for it."""

    def __init__(self, weight: Tensor, *, accumulates: bool) -> None:
        self._weight = weight
        own = sum_of_gradients(weight) if accumulates else None
        self._is_own = own is not None
        self._total = torch.zeros_like(wide(weight)) if own is None else own

    def add(self, gradient: Tensor, inputs: Tensor) -> None:
        add_product(self._total, gradient, inputs)

    def gradient(self) -> Tensor | None:
        return None if self._is_own else self._total.to(self._weight.dtype)


def _of(values: Tensor | None, part: slice) -> Tensor | None:
    return None if values is None else values[part]


@torch.no_grad()
def _kth_largest(
    rows: Tensor, head: Tensor, num_real: int, temperature: float, k: int, axis: VocabularyAxis
) -> Tensor:
    """[N, H] -> [N, 1]: the k-th largest logit over all ranks' vocabularies."""
    own = []
    for part in parts(len(rows), len(head)):
        logits = _tempered(rows[part] @ head.t(), None, num_real, temperature)
        own.append(torch.topk(logits, min(k, len(head)), dim=-1).values)
    candidates = axis.gather_last_dim(torch.cat(own))
    return torch.topk(candidates, min(k, candidates.shape[-1]), dim=-1).values[:, -1:]


def _tempered(logits: Tensor, least: Tensor | None, num_real: int, temperature: float) -> Tensor:
    """Return logits [n, V / tp] in at least float32, -inf at padding and below the least that counts."""
    values = wide(logits)
    if temperature != 1.0:
        values = values / temperature
    if num_real < values.shape[-1]:
        is_padding = torch.arange(values.shape[-1], device=values.device) >= num_real
        values = values.masked_fill(is_padding, float("-inf"))
    return values if least is None else values.masked_fill(values < least, float("-inf"))


@fused
def _statistics(logits: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return of [n, V / tp] the largest, the sum of exponentials relative to it, and the one at a place."""
    values = wide(logits)
    largest = _finite(values.amax(dim=-1, keepdim=True))
    total = torch.exp(values - largest).sum(dim=-1)
    own = values.gather(-1, places.unsqueeze(-1))
    return largest.squeeze(-1), total, own.squeeze(-1)


@fused
def _become_gradient(
    logits: Tensor, log_total: Tensor, places: Tensor, is_own: Tensor, gradient: Tensor
) -> None:
    """Replace [n, V / tp] by the gradient of their cross-entropy."""
    shares = torch.exp(wide(logits) - log_total.unsqueeze(-1))
    pieces = torch.arange(logits.shape[-1], device=logits.device)
    is_target = (pieces == places.unsqueeze(-1)) & is_own.unsqueeze(-1)
    logits.copy_((shares - is_target.to(shares.dtype)) * gradient.unsqueeze(-1))


@fused
def _weights(
    logits: Tensor, least: Tensor | None, num_real: int, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return exponentials relative to the largest, [n, V / tp], their sum and the largest, [n, 1]."""
    values = _tempered(logits, least, num_real, temperature)
    largest = _finite(values.amax(dim=-1, keepdim=True))
    weights = torch.exp(values - largest)
    return weights.to(logits.dtype), weights.sum(dim=-1, keepdim=True), largest


@fused
def _weights_and_gradient(
    logits: Tensor,
    of_weights: Tensor,
    of_total: Tensor,
    largest: Tensor,
    least: Tensor | None,
    num_real: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return the weights again, and the gradient of the logits, both [n, V / tp]."""
    weights = torch.exp(_tempered(logits, least, num_real, temperature) - largest)
    of_logits = (wide(of_weights) + of_total) * weights / temperature
    return weights.to(logits.dtype), of_logits.to(logits.dtype)


def _finite(largest: Tensor) -> Tensor:
    """A rank that holds nothing but padding has no largest logit."""
    return largest.clamp_min(torch.finfo(largest.dtype).min)
