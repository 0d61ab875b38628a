"""Embedding, head, cross-entropy and mixtures over a vocabulary that is split between tensor-parallel ranks.

V = padded vocabulary, of which each rank holds V / tp rows; R = rows; H = hidden size. No [R, V] tensor is
ever gathered. Padding rows beyond the tokenizer's vocabulary get no probability.
"""

import torch
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor
from torch.nn import functional

from megatron_ext.parallel.tensor import TensorAxis
from megatron_ext.parallel.vocabulary_in_parts import cross_entropy_in_place

IGNORED_LABEL = -100


def mask_padding_rows(logits: Tensor, vocab_size: int, axis: TensorAxis) -> Tensor:
    """Give the rows that pad the vocabulary no probability.

    Args:
        logits: [..., V / tp].
        vocab_size: rows that stand for a piece of the tokenizer.
    Returns:
        [..., V / tp], with -inf at padding rows.
    """
    partition = logits.shape[-1]
    num_real = num_real_rows(partition, vocab_size, axis)
    if num_real == partition:
        return logits
    is_padding = torch.arange(partition, device=logits.device) >= num_real
    return logits.masked_fill(is_padding, float("-inf"))


@torch.no_grad()
def hide_padding_rows(logits: Tensor, vocab_size: int, axis: TensorAxis) -> None:
    """Do the same in place and behind autograd, for what gives a logit of -inf no gradient."""
    num_real = num_real_rows(logits.shape[-1], vocab_size, axis)
    logits[..., num_real:] = float("-inf")


def num_real_rows(partition: int, vocab_size: int, axis: TensorAxis) -> int:
    """Return how many of the `partition` rows of this rank stand for a piece of the tokenizer."""
    return min(max(vocab_size - axis.rank * partition, 0), partition)


def token_losses(logits: Tensor, labels: Tensor, axis: TensorAxis, *, fuses: bool = False) -> Tensor:
    """Return the cross-entropy of each position in nats; 0 where the label is -100.

    The logits may be overwritten: Megatron's cross-entropy works in place.

    Args:
        logits: [S, B, V / tp].
        labels: [S, B] int64.
        axis: of the ranks that share the vocabulary.
        fuses: make no copy of the logits.
    Returns:
        [S, B], float32 (float64 for float64 logits).
    """
    has_label = labels != IGNORED_LABEL
    # Megatron views the targets as one row, which a transposed tensor does not allow.
    targets = labels.clamp_min(0).contiguous()
    if fuses:
        losses = cross_entropy_in_place(logits, targets, axis)
    elif logits.dtype == torch.float64:
        losses = _exact_cross_entropy(logits, targets, axis)
    else:
        losses = vocab_parallel_cross_entropy(logits.contiguous(), targets)
    return losses * has_label


@torch.no_grad()
def label_is_first(logits: Tensor, labels: Tensor, axis: TensorAxis) -> Tensor:
    """Return whether the label of each position is the most likely piece; of equals the first one counts.

    Each rank looks through its own vocabulary; only the largest logits and their places are reduced.

    Args:
        logits: [S, B, V / tp].
        labels: [S, B] int64.
    Returns:
        [S, B] bool.
    """
    own, places = logits.max(dim=-1)
    is_largest = own == axis.max_over_ranks(own)
    beyond = torch.iinfo(places.dtype).max
    places = torch.where(is_largest, places + axis.rank * logits.shape[-1], beyond)
    return -axis.max_over_ranks(-places) == labels


def mix_embeddings(
    rows: Tensor,
    head: Tensor,
    embedding: Tensor,
    *,
    vocab_size: int,
    topk: int | None,
    axis: TensorAxis,
    temperature: float = 1.0,
) -> Tensor:
    """Return ``softmax(head h / temperature) . embedding`` for every row (definitions 3.1).

    Each rank exponentiates the logits of its own vocabulary; only a maximum, a sum and a product are reduced.

    Args:
        rows: h, [R or R / tp, B, H].
        head, embedding: [V / tp, H].
        vocab_size: rows of the vocabulary that are not padding.
        topk: mix over this many largest logits only; None for all.
        temperature: divides the logits.
    Returns:
        [R or R / tp, B, H].
    """
    logits = functional.linear(axis.to_partial_use(rows), head)
    logits = mask_padding_rows(logits, vocab_size, axis).to(torch.promote_types(rows.dtype, torch.float32))
    logits = logits if temperature == 1.0 else logits / temperature
    if topk is not None:
        logits = logits.masked_fill(logits < _kth_largest(logits, topk, axis), float("-inf"))
    largest = axis.max_over_ranks(logits.amax(dim=-1, keepdim=True))
    weights = torch.exp(logits - largest)
    total = axis.from_partial_sums(weights.sum(dim=-1, keepdim=True))
    product = axis.from_partial_sums(weights.to(embedding.dtype) @ embedding)
    return (product / total).to(rows.dtype)


def _kth_largest(logits: Tensor, k: int, axis: TensorAxis) -> Tensor:
    """[R, B, V / tp] -> [R, B, 1]: the k-th largest logit over all ranks' vocabularies, without gradient."""
    own = torch.topk(logits.detach(), min(k, logits.shape[-1]), dim=-1).values
    candidates = axis.gather_last_dim(own)
    return torch.topk(candidates, min(k, candidates.shape[-1]), dim=-1).values[..., -1:]


def _exact_cross_entropy(logits: Tensor, targets: Tensor, axis: TensorAxis) -> Tensor:
    """Cross-entropy in the logits' own dtype; Megatron's is float32, too coarse for float64 tests."""
    partition = logits.shape[-1]
    local = targets - axis.rank * partition
    is_own = (local >= 0) & (local < partition)
    shifted = logits - axis.max_over_ranks(logits.amax(dim=-1, keepdim=True))
    normalizer = axis.sum_over_ranks(shifted.exp().sum(dim=-1)).log()
    own = shifted.gather(-1, local.clamp(0, partition - 1).unsqueeze(-1)).squeeze(-1)
    return normalizer - axis.sum_over_ranks(torch.where(is_own, own, 0.0))
