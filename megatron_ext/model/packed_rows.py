"""Passes that run the rows of the slots that tokens take, and leave out those of pruned ones.

The rows of a sequence keep their order, so that attention stays causal. Sequences of a micro-batch differ in
how many they have; shorter ones are filled with pruned rows at their end, which no other row sees and nobody
reads.

S = tokens, n = slots per token in the pass, B = micro-batch, R = rows that run of the longest sequence.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_ext.ponder.attention import Segments
from megatron_ext.ponder.slots import merge_slots, slots_up_to


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRows:
    """Where the rows that run are among all rows of a pass.

    Attributes:
        order: which of a sequence's S * n rows is in each place, [R, B] int64; no row has two places.
        runs: whether that row runs, and does not fill up its sequence, [R, B] bool.
        num_rows: S * n.
        num_slots: n.
        segments: runs of places that see each other, or None.
    """

    order: Tensor
    runs: Tensor
    num_rows: int
    num_slots: int
    segments: Segments | None

    def take(self, rows: Tensor) -> Tensor:
        """Pack rows: [S * n, B, ...] -> [R, B, ...]."""
        packed: Tensor = _Take.apply(rows.flatten(0, 1), self._places())  # type: ignore[no-untyped-call]
        unflattened: Tensor = packed.unflatten(0, self.order.shape)
        return unflattened

    def put(self, packed: Tensor) -> Tensor:
        """Unpack rows: [R, B, ...] -> [S * n, B, ...], 0 in rows that do not run."""
        runs = self.runs.reshape(*self.runs.shape, *(1 for _ in packed.shape[2:]))
        kept = torch.where(runs, packed, 0.0).flatten(0, 1)
        batch_size = self.order.shape[1]
        rows: Tensor = _Put.apply(kept, self._places(), self.num_rows * batch_size)  # type: ignore[no-untyped-call]
        unflattened: Tensor = rows.unflatten(0, (self.num_rows, batch_size))
        return unflattened

    def positions(self, position_ids: Tensor) -> Tensor:
        """Return the rotary position of each place: [B, S] -> [B, R]."""
        return position_ids.gather(1, (self.order // self.num_slots).transpose(0, 1))

    def _places(self) -> Tensor:
        """Places in rows of all sequences, [R * B]."""
        batch_size = self.order.shape[1]
        sequences = torch.arange(batch_size, device=self.order.device)
        return (self.order * batch_size + sequences).flatten()


def pack_rows(last_slot: Tensor, num_slots: int, segments: Segments | None) -> PackedRows:
    """Find the rows that run, waiting for the device to know how many they are.

    Args:
        last_slot: of each token, [S, B] int64.
        num_slots: n.
        segments: runs of tokens that see each other, or None where every sequence is one.
    """
    runs = merge_slots(slots_up_to(last_slot, num_slots))
    # [S, B] -> [B, S + 1]
    ends = torch.nn.functional.pad((last_slot + 1).cumsum(0), (0, 0, 1, 0)).transpose(0, 1)
    borders = ends.tolist()
    most = max(row[-1] for row in borders)
    order = torch.argsort((~runs).to(torch.int8), dim=0, stable=True)[:most]
    return PackedRows(
        order=order,
        runs=runs.gather(0, order),
        num_rows=runs.shape[0],
        num_slots=num_slots,
        segments=_packed_segments(segments, borders, most),
    )


def _packed_segments(segments: Segments | None, borders: list[list[int]], most: int) -> Segments | None:
    """Turn runs of tokens into runs of places; what fills up a sequence is a run of its own."""
    if segments is None:
        return None
    packed = []
    for runs, places in zip(segments, borders, strict=True):
        filling = ((places[-1], most),) if places[-1] < most else ()
        packed.append(tuple((places[start], places[stop]) for start, stop in runs) + filling)
    return tuple(packed)


class _Take(torch.autograd.Function):
    """Rows by index, none of them twice."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.num_rows = rows.shape[0]
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        whole = gradient.new_zeros(ctx.num_rows, *gradient.shape[1:])
        return whole.index_copy_(0, places, gradient), None


class _Put(torch.autograd.Function):
    """Rows by index into zeros, none of them twice."""

    @staticmethod
    def forward(ctx: Any, packed: Tensor, places: Tensor, num_rows: int) -> Tensor:
        ctx.save_for_backward(places)
        whole = packed.new_zeros(num_rows, *packed.shape[1:])
        return whole.index_copy_(0, places, packed)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None
