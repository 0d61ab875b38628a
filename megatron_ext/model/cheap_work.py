"""Selective activation recompute: backward computes again what is cheap, and keeps what is not.

The results of matrix products and of attention are kept, and what attention takes. Norms, activations and
copies of attended values follow from them by functions of single rows, which read and write two or three
values for each one that need not be kept. (To widen queries, keys and values by the columns of weights again
would take 17.) Where an operation would keep the result of such a function for its backward, autograd's hooks
on saved tensors put the function and its inputs in its place.

Unlike a checkpoint, of :mod:`torch.utils.checkpoint` or Megatron's ``CheckpointWithoutOutput``, this leaves
the graph as it is: passes stay in one graph, each weight reports its gradient once, and gradients are bit for
bit those without recompute. It also needs no random state, as nothing of a layer is random.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

Results = TypeVar("Results", bound=Tensor | tuple[Tensor, ...])


@contextmanager
def recomputing_cheap_work(is_on: bool) -> Iterator[None]:
    """Let operations within keep no result of :func:`cheap`, but what it takes to compute it again.

    Where there is no graph, or if it is off, nothing changes.
    """
    if not is_on or not torch.is_grad_enabled():
        yield
        return
    marks = _Marks()
    token = _current.set(marks)
    try:
        with saved_tensors_hooks(marks.pack, _unpack):
            yield
    finally:
        _current.reset(token)


def cheap(function: Callable[..., Results], *inputs: Any) -> Results:
    """Call a function whose results backward may compute again, see :func:`recomputing_cheap_work`.

    Args:
        function: without communication and randomness; run a second time, it gets the same inputs, detached.
        inputs: tensors that are kept anyway, and other values.
    Returns:
        What the function returns.
    """
    results = function(*inputs)
    marks = _current.get()
    if marks is not None:
        marks.add(function, inputs, results)
    return results


class _Again:
    """The results of a function, computed again when the first of them is asked for.

    They are released when all have been asked for that were to be kept.
    """

    def __init__(self, function: Callable[..., Any], inputs: tuple[Any, ...]) -> None:
        self._function = function
        # Without their graph: operations before this one must not live on because of it.
        self._inputs = tuple(each.detach() if isinstance(each, Tensor) else each for each in inputs)
        self._num_kept = self._num_asked = 0
        self._results: tuple[Tensor, ...] = ()

    def keep(self) -> None:
        """Note that backward of one more operation will ask."""
        self._num_kept += 1

    def result(self, index: int) -> Tensor:
        """Return one of the results."""
        if not self._results:
            with torch.no_grad():
                self._results = _as_tuple(self._function(*self._inputs))
        result = self._results[index]
        self._num_asked += 1
        if self._num_asked == self._num_kept:
            self._num_asked, self._results = 0, ()
        return result


@dataclass(frozen=True, slots=True)
class _Kept:
    """What an operation keeps in place of a tensor: a view of one of the results of a function."""

    again: _Again
    index: int
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def tensor(self) -> Tensor:
        return self.again.result(self.index).as_strided(self.size, self.stride, self.offset)


class _Marks:
    """Which storage holds which result of a cheap function, within one layer."""

    def __init__(self) -> None:
        # A weak reference: the results live as long as they are used.
        self._sources: dict[StorageWeakRef, tuple[_Again, int]] = {}

    def add(self, function: Callable[..., Any], inputs: tuple[Any, ...], results: Any) -> None:
        """Note the results of a function; one that is a view of an input costs no memory of its own."""
        given = {_storage(each) for each in inputs if isinstance(each, Tensor)}
        again = _Again(function, inputs)
        for index, result in enumerate(_as_tuple(results)):
            if _storage(result) not in given:
                self._sources[_storage(result)] = again, index

    def pack(self, tensor: Tensor) -> Tensor | _Kept:
        """Return what an operation keeps of a tensor that its backward needs."""
        source = self._sources.get(_storage(tensor))
        if source is None:
            # A result that an operation keeps of itself would keep the operation.
            return tensor if tensor.grad_fn is None else tensor.detach()
        again, index = source
        again.keep()
        return _Kept(again, index, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


_current: ContextVar[_Marks | None] = ContextVar("cheap_work", default=None)


def _unpack(kept: Tensor | _Kept) -> Tensor:
    return kept.tensor() if isinstance(kept, _Kept) else kept


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())


def _as_tuple(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)
