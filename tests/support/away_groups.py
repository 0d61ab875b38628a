"""Collectives of the device of :mod:`tests.support.away`, with the rules of NCCL.

Data moves over gloo, between the values that the tensors hold. Which tensors a group takes is what its
backend would decide on CUDA: a group of the default backend takes tensors of the device and of the host, one
of the device's backend takes no tensors of the host, and one of gloo none of the device (gloo itself takes
some, by way of the host).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.distributed import ProcessGroup

from megatron_ext.device import HOST_BACKEND

AWAY_BACKEND = "away"
"""Backend of groups that take tensors of the device alone."""

_OBJECT_COLLECTIVES = (
    "all_gather_object",
    "broadcast_object_list",
    "gather_object",
    "scatter_object_list",
)


class AwayGroups:
    """The backends of the process groups that are made while the device is there.

    Attributes:
        backends: torch's name of a group -> its backend; groups that were there before have the default one.
    """

    def __init__(self) -> None:
        self.backends: dict[str, str] = {}
        self._sends_objects = False

    def takes(self, group: ProcessGroup, *, of_device: bool) -> bool:
        """Return whether a group takes tensors of the device, or of the host."""
        backend = self.backends.get(group.group_name)
        if of_device:
            return backend != HOST_BACKEND
        return backend != AWAY_BACKEND or self._sends_objects

    @contextmanager
    def followed(self, device: torch.device, wait: Callable[[str], None]) -> Iterator[None]:
        """Note the backends of new groups.

        Args:
            device: that groups have a backend for, if not of gloo.
            wait: called where objects go through the device.
        """
        with ExitStack() as stack:

            def replace(name: str, wrap: Callable[[Callable[..., Any]], Any]) -> None:
                original = getattr(torch.distributed, name)
                stack.callback(setattr, torch.distributed, name, original)
                setattr(torch.distributed, name, wrap(original))

            replace("new_group", lambda original: self._new_group(original, device))
            for name in _OBJECT_COLLECTIVES:
                replace(name, lambda original: self._of_objects(original, wait))
            yield

    def _new_group(self, original: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
        def new_group(*args: Any, backend: str | None = None, **kwargs: Any) -> Any:
            group = original(*args, backend=None if backend == AWAY_BACKEND else backend, **kwargs)
            if isinstance(group, ProcessGroup):
                if backend is not None:
                    self.backends[group.group_name] = backend
                if backend != HOST_BACKEND:
                    _register(group, device)
            return group

        return new_group

    def _of_objects(self, original: Callable[..., Any], wait: Callable[[str], None]) -> Callable[..., Any]:
        def exchange(*args: Any, group: ProcessGroup | None = None, **kwargs: Any) -> Any:
            if group is not None and self.backends.get(group.group_name) == AWAY_BACKEND:
                # Torch copies the pickled objects to the device and back.
                wait("objects through the device")
                self._sends_objects = True
            try:
                return original(*args, group=group, **kwargs)
            finally:
                self._sends_objects = False

        return exchange


def group_of(args: Sequence[Any]) -> ProcessGroup:
    """Return the process group among the arguments of a collective."""
    (group,) = (found for found in map(_unboxed, args) if found is not None)
    return group


def _unboxed(value: Any) -> ProcessGroup | None:
    if isinstance(value, Tensor) or not isinstance(value, torch.ScriptObject):
        return None
    try:
        return ProcessGroup.unbox(value)
    except (RuntimeError, ValueError, TypeError):
        return None


def _register(group: ProcessGroup, device: torch.device) -> None:
    """Let torch find a backend where it asks for that of the device, as before it sends from rank to rank."""
    group._register_backend(device, ProcessGroup.BackendType.GLOO, group._get_backend(torch.device("cpu")))
