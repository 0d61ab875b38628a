"""The device this rank computes on: CUDA, or the CPU where there is none.

Here and in :mod:`megatron_ext.host`, which lets Megatron run without CUDA, is everything that asks for CUDA.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

HOST_BACKEND = "gloo"
"""Backend of process groups that only exchange tensors and objects in host memory."""


def has_cuda() -> bool:
    """Return whether ranks compute on CUDA devices."""
    return torch.cuda.is_available()


def device() -> torch.device:
    """Return the device of this rank's parameters and batches."""
    if has_cuda():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def device_name() -> str:
    """Return the product name of a CUDA device; of a CPU, how many threads each rank has."""
    if has_cuda():
        return torch.cuda.get_device_name()
    return f"CPU ({torch.get_num_threads()} threads per rank)"


def select_device(local_rank: int) -> None:
    """Make the CUDA device of this number the one that :func:`device` returns; nothing without CUDA."""
    if has_cuda():
        torch.cuda.set_device(local_rank)


def process_group_backend() -> str:
    """Return torch.distributed's backend: NCCL for CUDA tensors, gloo for those in host memory."""
    return "cpu:gloo,cuda:nccl" if has_cuda() else HOST_BACKEND


def synchronize() -> None:
    """Wait until this rank's device has finished what was queued; a CPU queues nothing."""
    if has_cuda():
        torch.cuda.synchronize()


def as_integers(numbers: Sequence[int]) -> Tensor:
    """Return numbers as int64 on this rank's device, in the same order."""
    return torch.tensor(numbers, dtype=torch.int64, device=device())


def generator_state() -> Tensor:
    """Return the state of the random generator of this rank's device."""
    return torch.cuda.get_rng_state() if has_cuda() else torch.get_rng_state()


def set_generator_state(state: Tensor) -> None:
    """Set the random generator of this rank's device, from :func:`generator_state`."""
    if has_cuda():
        torch.cuda.set_rng_state(state)
    else:
        torch.set_rng_state(state)
