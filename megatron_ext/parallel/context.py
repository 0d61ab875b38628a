"""Communication between context-parallel ranks, which share the tokens of each row.

Which tokens a rank holds is in :mod:`megatron_ext.ponder.chunks`. What is defined over a whole row (penalties
and statistics) is computed by every rank from all tokens, gathered; only attention needs the hidden states of
others, see :mod:`megatron_ext.parallel.context_attention`. With one rank nothing here does anything.

S = tokens of a row, C = ranks.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_ext.parallel.tensor import TensorAxis
from megatron_ext.ponder.chunks import own_chunks, ranks_from_whole, whole_from_ranks


@dataclass(frozen=True, slots=True)
class ContextAxis:
    """The context axis.

    Attributes:
        group: ranks that share the tokens of each row.
    """

    group: ProcessGroup

    @property
    def size(self) -> int:
        """Number of ranks on the axis."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """This rank's coordinate."""
        return self.group.rank()

    def own_tokens(self, per_token: Tensor, *, dim: int = 0) -> Tensor:
        """Return this rank's share of values of all tokens: S -> S / C along `dim`."""
        if self.size == 1:
            return per_token
        return own_chunks(per_token, self.rank, self.size, dim=dim)

    def gather(self, own: Tensor) -> Tensor:
        """Return the rows of all ranks in the order of the text, without gradient.

        Args:
            own: [S / C, ...].
        Returns:
            [S, ...].
        """
        own = own.detach()
        if self.size == 1:
            return own
        # gloo and NCCL move bytes; not every backend knows of booleans.
        sent = own.to(torch.uint8) if own.dtype == torch.bool else own
        whole = sent.new_empty(self.size * sent.shape[0], *sent.shape[1:])
        torch.distributed.all_gather_into_tensor(whole, sent.contiguous(), group=self.group)
        return whole_from_ranks(whole, self.size).to(own.dtype)

    def to_full_use(self, own: Tensor) -> Tensor:
        """Give every rank all rows, for the same computation on all; backward keeps this rank's share."""
        if self.size == 1:
            return own
        whole: Tensor = _Gather.apply(own, self)  # type: ignore[no-untyped-call]
        return whole

    def add_up(self, whole: Tensor) -> Tensor:
        """Add up partial values of all tokens over ranks and keep this rank's share.

        Args:
            whole: [S, ...].
        Returns:
            [S / C, ...].
        """
        if self.size == 1:
            return whole
        ordered = ranks_from_whole(whole, self.size)
        own = ordered.new_empty(ordered.shape[0] // self.size, *ordered.shape[1:])
        torch.distributed.reduce_scatter_tensor(own, ordered, group=self.group)
        return own

    def total(self, sums: Tensor) -> Tensor:
        """Turn sums over this rank's tokens into sums over all tokens, without gradient."""
        return self._reduced(sums, torch.distributed.ReduceOp.SUM)

    def largest(self, values: Tensor) -> Tensor:
        """Return the element-wise maximum over ranks, without gradient."""
        return self._reduced(values, torch.distributed.ReduceOp.MAX)

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        if self.size == 1:
            return values
        values = values.detach().clone()
        torch.distributed.all_reduce(values, op=operation, group=self.group)
        return values


@dataclass(frozen=True, slots=True)
class TokenAxes:
    """The two axes over which tokens may be spread: context, and tensor under sequence parallelism.

    Attributes:
        tensor: shares the tokens of a context-parallel rank, in order.
        context: shares the tokens of a row.
    """

    tensor: TensorAxis
    context: ContextAxis

    def to_full_use(self, rows: Tensor) -> Tensor:
        """Give every rank all rows, for the same computation on all; backward keeps this rank's share."""
        return self.context.to_full_use(self.tensor.to_full_use(rows))

    def own_tokens(self, per_token: Tensor) -> Tensor:
        """Return the share of [S, ...] that belongs to the hidden states on this rank."""
        return self.tensor.own_tokens(self.context.own_tokens(per_token))

    def total_of_own_tokens(self, sums: Tensor) -> Tensor:
        """Turn sums over the tokens of this rank into sums over all tokens, without gradient."""
        return self.context.total(self.tensor.total_of_own_tokens(sums))

    def max_over_ranks(self, values: Tensor) -> Tensor:
        """Return the element-wise maximum over ranks, without gradient."""
        return self.context.largest(self.tensor.max_over_ranks(values))


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, axis: ContextAxis) -> Tensor:
        ctx.axis = axis
        return axis.gather(own)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.axis.own_tokens(gradient), None
