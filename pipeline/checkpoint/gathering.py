"""The optimizer's state for a checkpoint: every rank receives what it writes, and nothing else.

Data-parallel ranks hold the state in flat shards, whose ends lie within parameters; a checkpoint stores whole
parameters. Megatron gathers all shards on each of these ranks and cuts the parameters out, which takes 12
bytes of host memory for every parameter there. Here Megatron cuts them out of tensors without values. Once it
is known who writes which, every rank sends the parts that it holds to the ranks that write them.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

# Tensors of the state as Megatron names them.
_KEYS = ("param", "exp_avg", "exp_avg_sq")


class _Name(NamedTuple):
    """One tensor of the state of one parameter: which optimizer, which of its buffers, and where in that."""

    part: int
    buffer: int
    key: str
    position: int


class _Span(NamedTuple):
    """A range of a buffer."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


class ScatteredState:
    """The state of optimizers whose shards are spread over data-parallel ranks.

    Args:
        parts: Megatron's distributed optimizers.
    """

    def __init__(self, parts: Sequence[Any]) -> None:
        self._parts = parts
        self._spans = {
            (number, index): [_Span(*place[:2]) for place in buffer.param_index_map.values()]
            for number, part in enumerate(parts)
            for index, buffer in enumerate(part.buffers)
        }
        # Storages without values -> what they are; the tensors are kept so that the numbers stay theirs.
        self._places: dict[int, tuple[int, int, str]] = {}
        self._hollow: list[Tensor] = []

    @contextmanager
    def hollow(self) -> Iterator[None]:
        """Let Megatron describe the state without gathering it."""
        with ExitStack() as stack:
            for number, part in enumerate(self._parts):
                part.get_parameter_state_dp_zero = partial(self._describe, number)
                stack.callback(delattr, part, "get_parameter_state_dp_zero")
            yield

    def is_hollow(self, tensor: Tensor) -> bool:
        """Return whether a tensor is one that has no values yet."""
        return tensor.untyped_storage()._cdata in self._places

    def fill(self, pieces: Sequence[Any]) -> int:
        """Give pieces their values; all data-parallel ranks call it together.

        Args:
            pieces: Megatron's sharded tensors that this rank writes; those of the state have no values yet.
        Returns:
            Host memory that the values take, in bytes.
        """
        hollow = [piece for piece in pieces if self.is_hollow(piece.data)]
        names = [self._name_of(piece.data) for piece in hollow]
        values: dict[_Name, Tensor] = {}
        for number in range(len(self._parts)):
            values |= self._exchange(number, sorted({name for name in names if name.part == number}))
        for piece, name in zip(hollow, names, strict=True):
            view = piece.data
            offset = view.storage_offset() - self._span(name).start
            piece.data = values[name].as_strided(view.shape, view.stride(), offset)
        return sum(value.nbytes for value in values.values())

    def _describe(self, number: int, **_: Any) -> dict[Any, Any]:
        """Return what ``get_parameter_state_dp_zero`` would, without values."""
        described: dict[Any, Any] = {"buckets_coalesced": True}
        for index, of_buffer in enumerate(self._parts[number].gbuf_ranges):
            (dtype,) = of_buffer
            size = max(span.stop for span in self._spans[number, index])
            tensors = {key: torch.empty(size, dtype=torch.float32, device="meta") for key in _KEYS}
            for key, tensor in tensors.items():
                self._hollow.append(tensor)
                self._places[tensor.untyped_storage()._cdata] = number, index, key
            described[index] = {dtype: tensors}
        return described

    def _name_of(self, view: Tensor) -> _Name:
        """Return what a view without values is of."""
        number, index, key = self._places[view.untyped_storage()._cdata]
        offset = view.storage_offset()
        for position, (start, stop) in enumerate(self._spans[number, index]):
            if start <= offset < stop:
                return _Name(number, index, key, position)
        raise AssertionError("a piece of the state is of some parameter")

    def _exchange(self, number: int, own: list[_Name]) -> dict[_Name, Tensor]:
        """Return the parameters that this rank wants, [elements] on the host."""
        part = self._parts[number]
        wanted: list[list[_Name]] = [[] for _ in range(part.data_parallel_group.size())]
        torch.distributed.all_gather_object(wanted, own, group=part.data_parallel_group)
        received: dict[_Name, Tensor] = {}
        for index in range(len(part.gbuf_ranges)):
            for key in _KEYS:
                received |= self._exchange_one(
                    part, [[name for name in names if name[1:3] == (index, key)] for names in wanted]
                )
        return received

    def _exchange_one(self, part: Any, wanted: list[list[_Name]]) -> dict[_Name, Tensor]:
        """Exchange one kind of tensor of one buffer, of which each rank wants some."""
        group = part.data_parallel_group
        own = wanted[group.rank()]
        given = [[self._held(name) for name in names] for names in wanted]
        sent = torch.cat([held for of_rank in given for held in of_rank] or [_nothing(part)])
        taken = [[self._overlap(name, rank) for name in own] for rank in range(group.size())]
        received = sent.new_empty(sum(span.length for of_rank in taken for span in of_rank))
        torch.distributed.all_to_all_single(
            received,
            sent,
            [sum(span.length for span in of_rank) for of_rank in taken],
            [sum(map(len, of_rank)) for of_rank in given],
            group=group,
        )
        values = {name: torch.empty(self._span(name).length, dtype=torch.float32) for name in own}
        pieces = iter(received.cpu().split([span.length for of_rank in taken for span in of_rank]))
        for of_rank in taken:
            for name, span in zip(own, of_rank, strict=True):
                start = self._span(name).start
                values[name][span.start - start : span.stop - start] = next(pieces)
        return values

    def _span(self, name: _Name) -> _Span:
        return self._spans[name.part, name.buffer][name.position]

    def _overlap(self, name: _Name, rank: int) -> _Span:
        """Return what a rank holds of a parameter; an empty range if nothing."""
        part, span = self._parts[name.part], self._span(name)
        bucket = next(
            bucket
            for bucket in part.buffers[name.buffer].buckets
            if bucket.offset <= span.start < bucket.offset + bucket.grad_data.numel()
        )
        # Every bucket is divided evenly.
        size = bucket.grad_data.numel() // part.data_parallel_group.size()
        first = bucket.offset + rank * size
        start = min(max(span.start, first), span.stop)
        return _Span(start, max(min(span.stop, first + size), start))

    def _held(self, name: _Name) -> Tensor:
        """Return what this rank holds of a parameter, [elements]."""
        part = self._parts[name.part]
        length = self._overlap(name, part.data_parallel_group.rank()).length
        if length == 0:
            return _nothing(part)
        parameter = list(part.buffers[name.buffer].param_index_map)[name.position]
        held: Tensor = part._get_main_param_and_optimizer_states(parameter)[name.key].detach().flatten()
        assert len(held) == length, "Megatron divides buckets evenly"
        return held


def _nothing(part: Any) -> Tensor:
    return torch.empty(0, dtype=torch.float32, device=part.buffers[0].grad_data.device)
