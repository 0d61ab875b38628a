"""Communication between tensor-parallel ranks that pondering needs beside that of Megatron's layers.

With sequence parallelism, outside of attention and MLP every rank holds complete hidden states of a
contiguous share of the tokens. All slots of a token are neighbours, so slot arithmetic stays local; only
attention and the vocabulary need rows of other ranks, which the functions here move. Without sequence
parallelism these are Megatron's copy and reduce; with one rank they do nothing.
"""

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import tensor_parallel
from torch import Tensor
from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class TensorAxis:
    """The tensor axis: its group, and whether tokens are sharded over it.

    Attributes:
        group: ranks that share the layers' weights.
        shards_tokens: sequence parallelism.
    """

    group: ProcessGroup
    shards_tokens: bool

    @property
    def size(self) -> int:
        """Number of ranks on the axis."""
        return self.group.size()

    @property
    def is_alone(self) -> bool:
        """Whether there is neither another rank nor a gradient, so that nothing is left to communicate."""
        return self.size == 1 and not torch.is_grad_enabled()

    @property
    def rank(self) -> int:
        """This rank's coordinate."""
        return self.group.rank()

    def to_partial_use(self, rows: Tensor) -> Tensor:
        """Give every rank all rows, to compute its part of a result from them (its heads, its vocabulary).

        Each rank then has a partial gradient; backward sums them over ranks.

        Args:
            rows: [R or R / tp, ...].
        Returns:
            [R, ...].
        """
        if self.is_alone:
            return rows
        if self.shards_tokens:
            gathered: Tensor = tensor_parallel.gather_from_sequence_parallel_region(
                rows, True, group=self.group
            )
            return gathered
        copied = tensor_parallel.copy_to_tensor_model_parallel_region(rows, group=self.group)
        return contiguous_gradient(copied)

    def to_full_use(self, rows: Tensor) -> Tensor:
        """Give every rank all rows, for the same computation on all; backward keeps this rank's share."""
        if self.shards_tokens:
            gathered: Tensor = tensor_parallel.gather_from_sequence_parallel_region(
                rows, False, group=self.group
            )
            return gathered
        return rows

    def from_partial_sums(self, rows: Tensor) -> Tensor:
        """Add up partial rows over ranks and keep this rank's share: [R, ...] -> [R or R / tp, ...]."""
        if self.shards_tokens:
            scattered: Tensor = tensor_parallel.reduce_scatter_to_sequence_parallel_region(
                rows, group=self.group
            )
            return scattered
        return self.sum_over_ranks(rows)

    def sum_over_ranks(self, partial: Tensor) -> Tensor:
        """Add up partial values over ranks; every rank gets the sum, and backward is the identity."""
        if self.is_alone:
            return partial
        # Megatron reduces a contiguous copy of its argument and returns the argument.
        total: Tensor = tensor_parallel.reduce_from_tensor_model_parallel_region(
            partial.contiguous(), group=self.group
        )
        return total

    def max_over_ranks(self, values: Tensor) -> Tensor:
        """Return the element-wise maximum over ranks, without gradient."""
        values = values.detach().clone()
        if self.size > 1:
            torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return values

    def gather_last_dim(self, values: Tensor) -> Tensor:
        """Concatenate values of all ranks along the last dim, without gradient."""
        values = values.detach().contiguous()
        if self.size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.size)]
        torch.distributed.all_gather(parts, values, group=self.group)
        return torch.cat(parts, dim=-1)

    def own_tokens(self, per_token: Tensor) -> Tensor:
        """Return the share of [S, ...] that belongs to the hidden states on this rank."""
        if not self.shards_tokens:
            return per_token
        return per_token.chunk(self.size, dim=0)[self.rank]

    def total_of_own_tokens(self, sums: Tensor) -> Tensor:
        """Turn sums over the tokens of this rank into sums over all tokens, without gradient."""
        if self.shards_tokens and self.size > 1:
            sums = sums.detach().clone()
            torch.distributed.all_reduce(sums, group=self.group)
        return sums


def contiguous_gradient(values: Tensor) -> Tensor:
    """Return the values unchanged; their gradient is made contiguous.

    Megatron reduces a contiguous copy of any other gradient and drops the result, and gloo raises on it.
    """
    same: Tensor = _ContiguousGradient.apply(values)  # type: ignore[no-untyped-call]
    return same


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        del ctx
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        return gradient.contiguous()
