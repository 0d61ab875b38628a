"""How many bytes of tensors are alive, watched operation by operation.

The memory of a process says little about tensors: allocators keep what was freed, and libraries have buffers
of their own. Here the results of every operation are counted from when they are made until their storage is
given back, which is the same on every device. Copies that a communication library makes for itself are left
out.
"""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):
    """Counts the storages that operations under this mode make, once each, however many tensors view them.

    Attributes:
        live_bytes: of the storages that are alive.
        peak_bytes: the most there have been since :meth:`restart`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without annotations
        self.live_bytes = 0
        self.peak_bytes = 0
        self._sizes: dict[int, int] = {}

    def restart(self) -> None:
        """Forget the peak, not what is alive."""
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and take in what it returns, unless that is a view or an argument."""
        result = func(*args, **(kwargs or {}))
        made = [result] if len(func._schema.returns) == 1 else result
        for value, returned in zip(made or (), func._schema.returns, strict=True):
            if returned.alias_info is None:
                self._take_in_all(value)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return result

    def _take_in_all(self, values: Any) -> None:
        for value in tree_iter(values):
            if isinstance(value, Tensor):
                self._take_in(value)

    def _take_in(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live_bytes += storage.nbytes()
        weakref.finalize(storage, self._let_go, key)

    def _let_go(self, key: int) -> None:
        self.live_bytes -= self._sizes.pop(key)
