"""What a device would do and hold, counted operation by operation while code runs on the meta device."""

import math
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import FakeWork, ProcessGroup
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

# Its code is not what is looked at.
_OWN_FOLDER = str(Path(__file__).parent)

# Operations that only describe memory, allocate it, or are counted by their parts.
_WITHOUT_KERNEL = frozenset(
    f"aten::{name}"
    for name in (
        "detach",
        "alias",
        "lift_fresh",
        "_unsafe_view",
        "empty",
        "empty_strided",
        "empty_like",
        "new_empty",
        "new_empty_strided",
    )
)
_KERNELS = {
    "aten::_scaled_dot_product_flash_attention_backward": 3,
    "aten::_scaled_dot_product_efficient_attention_backward": 2,
    "aten::native_layer_norm_backward": 2,
    "aten::constant_pad_nd": 2,
    "aten::slice_backward": 2,
    "aten::select_backward": 2,
}
# They take tensors of both sides.
_COPIES = frozenset({aten._to_copy.default, aten.copy_.default})
# Their kernels are registered for no device but the real ones.
_COALESCED = frozenset(
    {"allreduce_coalesced_", "reduce_scatter_tensor_coalesced_", "allgather_into_tensor_coalesced_"}
)
_SEND_OR_RECEIVE = ("send", "recv_")


class Ledger(TorchDispatchMode):
    """Counts what operations on the meta device stand for.

    Attributes:
        live_bytes, peak_bytes: bytes of live tensors, and their maximum since :meth:`restart`.
        peak_parts: bytes of live tensors at the peak, by the owner at their creation.
        waits: (what, place in the code) -> how often the host would wait for the device.
        mixed: (operation, place) -> how often it got tensors of the host beside those of the device.
        collectives: (phase, operation, group) -> calls; `collective_bytes` their bytes.
        sends, send_bytes: by direction, point to point.
        kernels, flops: by phase.
        moved_bytes: by phase, of the operands and results of kernels other than products and attention.
        attention: (kernel, head size, grouped heads, mask) -> calls; filled by the stand-in of attention.
    """

    def __init__(self, roots: Sequence[str], group_names: Mapping[str, str]) -> None:
        """Start empty.

        Args:
            roots: parts of paths of files that places are looked for in.
            group_names: what process groups are called, by torch's names; may be filled later.
        """
        super().__init__()  # type: ignore[no-untyped-call]  # has no annotations in torch
        self._roots = roots
        self._group_names = group_names
        self.live_bytes = 0
        self.peak_bytes = 0
        self.peak_parts: dict[str, int] = {}
        self._parts: Counter[str] = Counter()
        self._storages: dict[int, tuple[int, str]] = {}
        self._owner = "other"
        self._phase = "step"
        self._has_kernel: dict[Any, bool] = {}
        self._is_inside_kernel = False
        self._clear()

    def restart(self) -> None:
        """Forget all counts, and take the present memory for the peak."""
        self._clear()
        self.peak_bytes, self.peak_parts = self.live_bytes, dict(self._parts)

    def _clear(self) -> None:
        self.waits: Counter[tuple[str, str]] = Counter()
        self.mixed: Counter[tuple[str, str]] = Counter()
        self.collectives: Counter[tuple[str, str, str]] = Counter()
        self.collective_bytes: Counter[tuple[str, str, str]] = Counter()
        self.sends: Counter[tuple[str, str]] = Counter()
        self.send_bytes: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.moved_bytes: Counter[str] = Counter()
        self.attention: Counter[tuple[str, int, bool, bool]] = Counter()

    @contextmanager
    def during(self, phase: str, owner: str | None = None) -> Iterator[None]:
        """Count what runs inside under a phase, and what it makes as parts of an owner."""
        before = self._phase, self._owner
        self._phase, self._owner = phase, owner or phase
        try:
            yield
        finally:
            self._phase, self._owner = before

    def run_as_kernel(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function that a compiler makes one kernel of: of its tensors, only the results are held."""
        before, self._is_inside_kernel = self._is_inside_kernel, True
        try:
            result = function(*args)
        finally:
            self._is_inside_kernel = before
        made = [value for value in tree_iter(result) if isinstance(value, Tensor) and value.is_meta]
        given = [value for value in args if isinstance(value, Tensor) and value.is_meta]
        # One that returns nothing writes to its first argument.
        self.count_kernels(1, sum(map(_moved, (*given, *(made or given[:1])))))
        for value in made:
            self._track(value)
        return result

    def count_kernels(self, number: int, num_bytes: int) -> None:
        """Count kernels of which no operation of torch tells, and what they read and write."""
        self.kernels[self._phase] += number
        self.moved_bytes[self._phase] += num_bytes

    def count_attention(self, kernel: str, head_size: int, *, is_grouped: bool, has_mask: bool) -> None:
        """Count a call of attention."""
        self.attention[kernel, head_size, is_grouped, has_mask] += 1

    def wait(self, what: str) -> None:
        """Count that the host would wait here."""
        self.waits[what, self._place()] += 1

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation, or give what stands for its result, and count it."""
        kwargs = kwargs or {}
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        if func.namespace == "c10d":
            return self._communicate(func, args, kwargs)
        if not any(tensor.is_meta for tensor in given):
            result = func(*args, **kwargs)
            self._take_result(func, given, result, args, kwargs)
            return result
        self._check_devices(func, given)
        answer = self._answer(func, args, kwargs)
        result = func(*args, **kwargs) if answer is NotImplemented else answer
        self._take_result(func, given, result, args, kwargs)
        return result

    def _take_result(self, func: Any, given: list[Tensor], result: Any, args: Any, kwargs: Any) -> None:
        made = [value for value in tree_iter(result) if isinstance(value, Tensor) and value.is_meta]
        on_device = made or any(tensor.is_meta for tensor in given)
        if not on_device or self._is_inside_kernel:
            return
        if func is aten._to_copy.default and not given[0].is_meta and not kwargs.get("non_blocking"):
            self.wait("copy from the host")
        if self._runs_kernel(func):
            self.kernels[self._phase] += _KERNELS.get(func._schema.name, 1)
            count = flop_registry.get(func._overloadpacket)
            if count is not None:
                # Torch's formulas do not know the dtype of a product of mixed precision.
                plain = [arg for arg in args if not isinstance(arg, torch.dtype)]
                self.flops[self._phase] += count(*plain, **kwargs, out_val=result)
            else:
                meta = [tensor for tensor in given if tensor.is_meta]
                self.moved_bytes[self._phase] += sum(map(_moved, (*meta, *made)))
        for tensor in made:
            self._track(tensor)

    def _runs_kernel(self, func: Any) -> bool:
        known = self._has_kernel.get(func)
        if known is None:
            returns = func._schema.returns
            is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
            known = not is_view and func._schema.name not in _WITHOUT_KERNEL
            self._has_kernel[func] = known
        return known

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return
        size = storage.nbytes()
        self._storages[key] = size, self._owner
        self.live_bytes += size
        self._parts[self._owner] += size
        weakref.finalize(storage, self._forget, key)
        if self.live_bytes > self.peak_bytes:
            self.peak_bytes, self.peak_parts = self.live_bytes, dict(self._parts)

    def _forget(self, key: int) -> None:
        size, owner = self._storages.pop(key)
        self.live_bytes -= size
        self._parts[owner] -= size

    def _check_devices(self, func: Any, given: Sequence[Tensor]) -> None:
        """Note tensors of the host; numbers without dimensions may come from there, and indices into some."""
        if func in _COPIES:
            return
        on_host = [tensor for tensor in given if not tensor.is_meta and tensor.dim() > 0]
        if not on_host:
            return
        if func is aten.index.Tensor and given[0].is_meta:
            self.wait("index of the host")
            return
        self.mixed[func._schema.name, self._place()] += 1

    def _answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what stands for values that only a device would know; NotImplemented for all else."""
        if func is aten._local_scalar_dense.default:
            self.wait("value")
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if func in (aten.equal.default, aten.is_nonzero.default):
            self.wait("value")
            return True
        if func is aten._to_copy.default and _is_host(kwargs.get("device")):
            self.wait("copy to the host")
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten.copy_.default and not args[0].is_meta:
            self.wait("copy to the host")
            return args[0]
        if func is aten.nonzero.default:
            self.wait("size of a result")
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        if func is aten.index.Tensor and _has_boolean(args[1]):
            self.wait("size of a result")
            return func(args[0], [_all_chosen(index) for index in _expanded(args[1])])
        is_put = func in (aten.index_put_.default, aten._index_put_impl_.default)
        if is_put and _has_boolean(args[1]):
            if args[2].numel() != 1:
                self.wait("size of a result")
            return args[0]
        return NotImplemented

    def _communicate(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func._schema.name.removeprefix("c10d::")
        group = next((found for found in map(_group, args) if found is not None), None)
        label = "?" if group is None else self._group_names.get(group.group_name, group.group_name)
        on_device = [value for value in tree_iter(args) if isinstance(value, Tensor) and value.is_meta]
        # The larger side is what moves: the input of a reduce-scatter, the output of an all-gather.
        sides = [_bytes(arg) for arg in args]
        size = max(sides, default=0)
        where = label if on_device or name == "barrier" else f"{label}, host"
        if name in _SEND_OR_RECEIVE:
            key = ("sent" if name == "send" else "received"), where
            self.sends[key] += 1
            self.send_bytes[key] += size
        else:
            entry = self._phase, name.strip("_"), where
            self.collectives[entry] += 1
            self.collective_bytes[entry] += size
        if name in _COALESCED:
            return FakeWork().boxed()
        return func(*args, **kwargs)

    def _place(self) -> str:
        """Return file:line of the innermost code of the roots that is running."""
        frame: FrameType | None = sys._getframe(2)
        while frame is not None:
            path = frame.f_code.co_filename
            root = next((root for root in self._roots if root in path), None)
            if root is not None and not path.startswith(_OWN_FOLDER):
                return f"{root.strip('/')}/{path.split(root, 1)[1]}:{frame.f_lineno}"
            frame = frame.f_back
        return "?"


def _is_host(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


def _moved(tensor: Tensor) -> int:
    """Return the bytes of a tensor's values; those that it repeats are moved once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(size for size, stride in sizes if stride)


def _bytes(value: Any) -> int:
    return sum(
        tensor.numel() * tensor.element_size() for tensor in tree_iter(value) if isinstance(tensor, Tensor)
    )


def _group(value: Any) -> ProcessGroup | None:
    if not isinstance(value, torch.ScriptObject):
        return None
    try:
        return ProcessGroup.unbox(value)
    except (RuntimeError, ValueError, TypeError):
        return None


def _has_boolean(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _expanded(indices: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
    """A boolean index of n dims stands for n indices."""
    for index in indices:
        if index is not None and index.dtype == torch.bool:
            yield from (index for _ in range(index.dim()))
        else:
            yield index


def _all_chosen(index: Tensor | None) -> Tensor | None:
    if index is None or index.dtype != torch.bool:
        return index
    return index.new_empty(index.numel(), dtype=torch.int64)
