"""A device that is not the CPU and holds real values, on any machine.

Its tensors say that they are on number 0 of torch's `meta` devices and keep their values in a tensor of the
host. Before an operation computes, it checks what CUDA would check: that all tensors are in one place, but
for what CUDA takes from the host too. So a run on this device gives the numbers of a CPU, and raises where
CUDA would. The places in the code where the host would wait for a device are counted.

Random numbers are those of the host's generator, and nothing runs at the same time as the host.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_ext import host
from megatron_ext.device import standing_in
from tests.support.away_groups import AWAY_BACKEND, AwayGroups, group_of

aten = torch.ops.aten
# Tensors without values, such as code makes them, have no number.
AWAY = torch.device("meta", 0)

_COPIES = frozenset({aten._to_copy.default, aten.copy_.default})
# They read shape and dtype of a tensor, wherever it is.
_MAKING_ALIKE = frozenset(
    {
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like"),
        *("new_empty", "new_empty_strided", "new_zeros", "new_ones", "new_full"),
    }
)
# CUDA copies indices of the host to the device.
_INDEXING = frozenset({aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default})
# Their result, or its size, depends on values of the device.
_READING = frozenset({aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default})
_SIZED_BY_VALUES = frozenset(
    {
        aten.nonzero.default,
        aten.masked_select.default,
        aten.repeat_interleave.Tensor,
        aten._unique2.default,
        aten.bincount.default,
    }
)
# All that a training step may wait for, and why.
NEEDED_WAITS = {
    "pipeline/step/train.py": "the loss of the step, by which all ranks decide alike whether to make it",
    "megatron/core/optimizer/clip_grads.py": "the norm of the gradients, to clip them and to judge the step",
}
_ROOTS = ("/megatron_ext/", "/pipeline/", "/megatron/core/", "/tests/")


class DevicesError(RuntimeError):
    """An operation got tensors of two devices."""


class AwayTensor(Tensor):
    """A tensor of the device.

    Attributes:
        held: its values, on the host.
    """

    held: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> "AwayTensor":
        assert type(held) is Tensor, type(held)
        made: AwayTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=AWAY,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Outside of :class:`AwayDevice`: nothing is counted."""
        return _run(func, args, kwargs or {}, AwayDevice())

    @property
    def data(self) -> Tensor:
        return AwayTensor(self.held)

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, AwayTensor), "a tensor stays on its device"
        torch._C.TensorBase.data.__set__(self, value)  # type: ignore[attr-defined]
        self.held = value.held

    def __deepcopy__(self, memo: Any) -> "AwayTensor":
        copied = AwayTensor(self.held.clone())
        return copied.requires_grad_(self.requires_grad)  # type: ignore[return-value]

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"AwayTensor({self.held})"

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor of another device cannot be read as an array")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a tensor of a device that is sent to another process arrives on the sender's device")

    def new_tensor(self, data: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Torch makes it without an operation of its own, as in `torch.tensor`, which the device replaces."""
        assert not args, "dtype and device are given by name"
        return torch.tensor(data, **{"dtype": self.dtype, "device": AWAY} | kwargs)

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()


class AwayDevice(TorchDispatchMode):
    """Makes tensors of the device where the device is named, and checks every operation.

    Attributes:
        waits: (what, file:line) -> how often the host would have waited for the device.
        operations: number of operations on tensors of the device.
        collectives: how many of them were collectives, or messages from rank to rank.
        groups: what process groups take.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # has no annotations in torch
        self.waits: Counter[tuple[str, str]] = Counter()
        self.operations = 0
        self.collectives = 0
        self.groups = AwayGroups()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {}, self)

    def wait(self, what: str) -> None:
        """Count that the host would wait here."""
        self.waits[what, _place()] += 1


@contextmanager
def away_device() -> Iterator[AwayDevice]:
    """Compute on the device, as :func:`megatron_ext.device.device` then says."""
    host.prepare_host()
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)

        away = AwayDevice()
        for owner in (torch, host._torch_with_cuda_read_as_cpu()):
            replace(owner, "tensor", _tensor(owner.tensor, away))
        replace(nn.Module, "to", _module_to(nn.Module.to))
        replace(torch.inference_mode, "__enter__", _enter_no_grad)
        stack.enter_context(standing_in(AWAY, AWAY_BACKEND))
        stack.enter_context(away.groups.followed(AWAY, away.wait))
        stack.enter_context(away)
        yield away


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], away: AwayDevice) -> Any:
    seen: list[Tensor] = []
    _map((args, kwargs), seen.append)
    is_away = any(isinstance(tensor, AwayTensor) for tensor in seen)
    target = kwargs.get("device")
    goes_away = target is not None and torch.device(target) == AWAY
    if func.namespace == "c10d":
        _check_group(func, args, seen, away)
    if not is_away and not goes_away:
        return func(*args, **kwargs)
    away.operations += 1
    _check(func, args, kwargs, seen, goes_away=goes_away or (is_away and target is None))
    if func is aten._to_copy.default:
        return _copy(func, args, kwargs, away)
    _count_waits(func, args, away)
    settings = {name: _map(value, _held) for name, value in kwargs.items()}
    if target is not None:
        settings["device"] = torch.device("cpu")
    result = func(*_map(args, _held), **settings)
    is_asked_for_here = target is not None and not goes_away
    if func in _READING or func.namespace == "c10d" or is_asked_for_here:
        return result
    return _on_device(func, args, kwargs, result)


def _check_group(func: Any, args: tuple[Any, ...], seen: Sequence[Tensor], away: AwayDevice) -> None:
    """Raise where the backends of a group would, and count a collective of the device."""
    on_device = [isinstance(tensor, AwayTensor) for tensor in seen]
    group = group_of(args)
    away.collectives += any(on_device)
    for is_on_device in set(on_device):
        if not away.groups.takes(group, of_device=is_on_device):
            place = "the device" if is_on_device else "the host"
            raise DevicesError(f"{func}: group {group.group_desc} takes no tensors of {place}")


def _copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], away: AwayDevice) -> Tensor:
    """Change dtype or device; a copy to another device is never the same memory."""
    (source,) = args
    was_away = isinstance(source, AwayTensor)
    target = kwargs.get("device")
    is_away = was_away if target is None else torch.device(target) == AWAY
    if was_away != is_away and (was_away or not kwargs.get("non_blocking")):
        away.wait("copy to the host" if was_away else "copy from the host")
    settings = kwargs | {"device": torch.device("cpu"), "non_blocking": False}
    made: Tensor = func(_held(source), **settings)
    if made.data_ptr() == _held(source).data_ptr():
        made = made.clone()
    return AwayTensor(made) if is_away else made


def _check(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], seen: list[Tensor], *, goes_away: bool
) -> None:
    """Raise where CUDA would."""
    generator = kwargs.get("generator")
    if generator is not None and goes_away:
        raise DevicesError(f"{func}: a generator of the {generator.device} for a tensor of the device")
    here = [tensor for tensor in seen if not isinstance(tensor, AwayTensor)]
    assert not any(tensor.is_meta for tensor in here), f"{func}: a tensor without values"
    if not here or func in _COPIES or func._schema.name.removeprefix("aten::") in _MAKING_ALIKE:
        return
    if func in _INDEXING:
        on_host = [tensor for tensor in _of_indexing(func, args) if not _is_fitting(tensor, args[0])]
    elif func.namespace == "c10d":
        on_host = here
    else:
        on_host = list(_of_the_wrong_side(func, args, kwargs))
    if on_host:
        shapes = [tuple(tensor.shape) for tensor in on_host]
        raise DevicesError(f"{func}: tensors of shape {shapes} are on another device than the others")


def _of_the_wrong_side(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Yield tensors of the host; single numbers may be, unless they are written or are in a list."""
    for number, (name, written) in enumerate(_signature(func).arguments):
        value = args[number] if number < len(args) else kwargs.get(name)
        is_list = isinstance(value, list | tuple)
        for tensor in value if is_list else (value,):
            is_on_host = isinstance(tensor, Tensor) and not isinstance(tensor, AwayTensor)
            if is_on_host and (tensor.dim() > 0 or written or is_list):
                yield tensor


def _of_indexing(func: Any, args: tuple[Any, ...]) -> Iterator[Tensor]:
    yield args[0]
    yield from (index for index in args[1] if index is not None)
    if func is not aten.index.Tensor:
        yield args[2]


def _is_fitting(tensor: Tensor, target: Tensor) -> bool:
    """Whether a tensor may be used with a target: on the device, indices of the host may."""
    if isinstance(target, AwayTensor):
        is_index = tensor.dtype in (torch.int64, torch.int32, torch.bool, torch.uint8)
        return isinstance(tensor, AwayTensor) or is_index or tensor.dim() == 0
    return not isinstance(tensor, AwayTensor)


def _count_waits(func: Any, args: tuple[Any, ...], away: AwayDevice) -> None:
    if func in _READING:
        away.wait("value")
    elif func in _SIZED_BY_VALUES:
        away.wait("size of a result")
    elif func is aten.copy_.default:
        to, source = (isinstance(tensor, AwayTensor) for tensor in args[:2])
        is_blocking = len(args) < 3 or not args[2]
        if to != source and (source or is_blocking):
            away.wait("copy to the host" if source else "copy from the host")
    elif func in _INDEXING:
        indices = [index for index in args[1] if index is not None]
        if any(not isinstance(index, AwayTensor) for index in indices):
            away.wait("index of the host")
        is_mask = any(index.dtype == torch.bool for index in indices)
        if is_mask and (func is aten.index.Tensor or args[2].numel() != 1):
            away.wait("size of a result")


def _on_device(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    """Give results their place; what was written in place is the argument itself."""
    results = _signature(func).results
    if len(results) == 1:
        return _placed(results[0], func, args, kwargs, result)
    if not isinstance(result, tuple):
        return result
    return tuple(
        _placed(written, func, args, kwargs, value) for written, value in zip(results, result, strict=True)
    )


def _placed(written: frozenset[str], func: Any, args: Any, kwargs: dict[str, Any], value: Any) -> Any:
    for number, (name, also_written) in enumerate(_signature(func).arguments if written else ()):
        if written & also_written:
            tensor = args[number] if number < len(args) else kwargs[name]
            assert not isinstance(tensor, AwayTensor) or tensor.shape == tensor.held.shape, func
            return tensor
    return _map(value, AwayTensor)


class _Signature(NamedTuple):
    """What an operation writes.

    Attributes:
        arguments: names, and the memory that is written there.
        results: the memory that is written, of which each result is; empty for other results.
    """

    arguments: tuple[tuple[str, frozenset[str]], ...]
    results: tuple[frozenset[str], ...]


@cache
def _signature(func: Any) -> _Signature:
    def written(declared: Any) -> frozenset[str]:
        alias = declared.alias_info
        return frozenset(alias.before_set) if alias is not None and alias.is_write else frozenset()

    schema = func._schema
    return _Signature(
        arguments=tuple((argument.name, written(argument)) for argument in schema.arguments),
        results=tuple(map(written, schema.returns)),
    )


def _held(tensor: Tensor) -> Tensor:
    return tensor.held if isinstance(tensor, AwayTensor) else tensor


def _map(value: Any, function: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if type(value) is list or type(value) is tuple:
        return type(value)([_map(one, function) for one in value])
    if type(value) is dict:
        return {name: _map(one, function) for name, one in value.items()}
    return value


def _enter_no_grad(mode: Any) -> None:
    """A wrapper around a tensor cannot be an inference tensor."""
    mode._inference_mode_context = torch.no_grad()
    mode._inference_mode_context.__enter__()


def _tensor(original: Callable[..., Tensor], away: AwayDevice) -> Callable[..., Tensor]:
    """Torch copies the values to the device without an operation of its own."""

    def make(data: Any, **kwargs: Any) -> Tensor:
        target = kwargs.get("device")
        if target is None or (target != "cuda" and torch.device(target) != AWAY):
            return original(data, **kwargs)
        away.wait("copy from the host")
        requires_grad = kwargs.pop("requires_grad", False)
        return AwayTensor(original(data, **kwargs | {"device": "cpu"})).requires_grad_(requires_grad)

    return make


def _module_to(original: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Keep what is noted on parameters, as between a CPU and CUDA, where torch replaces only their values."""

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        target = next((one for one in (*args, kwargs.pop("device", None)) if _names_device(one)), None)
        if target is None or torch.device(target) != AWAY:
            return original(module, *args, **kwargs if target is None else kwargs | {"device": target})
        args = tuple(one for one in args if one is not target)
        if args or kwargs:
            original(module, *args, **kwargs)
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and not isinstance(parameter, AwayTensor):
                    part._parameters[name] = _sent(parameter)
            for name, buffer in part._buffers.items():
                if buffer is not None and not isinstance(buffer, AwayTensor):
                    part._buffers[name] = AwayTensor(buffer.clone())
        return module

    return to


def _names_device(value: Any) -> bool:
    return isinstance(value, str | torch.device)


def _sent(parameter: nn.Parameter) -> nn.Parameter:
    sent = nn.Parameter(AwayTensor(parameter.detach().clone()), parameter.requires_grad)
    for name, value in vars(parameter).items():
        setattr(sent, name, value)
    return sent


def _place() -> str:
    """Return file:line of the innermost code of ours or Megatron's that is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        root = next((root for root in _ROOTS if root in path), None)
        if root is not None and path != __file__:
            return f"{root.strip('/')}/{path.split(root, 1)[1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "?"
