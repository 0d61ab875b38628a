"""Bytes of live tensors, tracked operation by operation.

The memory of a process says little about tensors: allocators keep freed memory, and libraries have buffers of
their own. Here the results of every operation are counted from their creation until their storage is freed,
which gives the same numbers on every device. Internal copies of communication libraries are not counted.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):
    """Counts the storages that operations in this mode create, each once, no matter how many tensors view it.

    Attributes:
        live_bytes: size of the live storages.
        peak_bytes: maximum of ``live_bytes`` since :meth:`restart`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # has no annotations in torch
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}

    def restart(self) -> None:
        """Reset the peak to the current size."""
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and track its results, except views and arguments."""
        result = func(*args, **(kwargs or {}))
        made = [result] if len(func._schema.returns) == 1 else result
        for value, returned in zip(made or (), func._schema.returns, strict=True):
            if returned.alias_info is None:
                self._track_all(value)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _track_all(self, values: Any) -> None:
        for value in tree_iter(values):
            if isinstance(value, Tensor):
                self._track(value)

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live_bytes += storage.nbytes()
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key)
