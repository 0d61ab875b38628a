"""The device this rank computes on: CUDA, or the CPU where there is none or where it is asked for.

Here and in :mod:`megatron_ext.host`, which lets Megatron run without CUDA, is everything that asks for CUDA.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity

DEVICE_VARIABLE = "MEGAPONDER_DEVICE"
"""Environment variable that chooses the device where the configuration leaves it open: auto, cpu or cuda."""

DEVICE_CHOICES = ("auto", "cpu", "cuda")

HOST_BACKEND = "gloo"
"""Backend of process groups that only exchange tensors and objects in host memory."""

# With any of them oneDNN multiplies in bf16: AVX-512 or AVX-NE-CONVERT on x86, BF16 on ARM.
_BF16_CAPABILITIES = ("avx512_bw", "avx_ne_convert", "bf16")

# What takes the place of CUDA, and its backend of process groups, innermost last; see `standing_in`.
_stand_ins: list[tuple[torch.device, str | None]] = []


def choose_device(choice: str) -> None:
    """Choose the kind of device for this process and those that it starts.

    Args:
        choice: cpu or cuda; auto leaves the choice to the environment, and without one takes CUDA where there
            is some.
    Raises:
        ValueError: the environment names another kind, or CUDA is asked for and there is none.
    """
    if choice != "auto":
        os.environ[DEVICE_VARIABLE] = choice
    if _choice() == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "a CUDA device must be visible, as parallel.device or MEGAPONDER_DEVICE asks for one, but none "
            "is; check the driver and CUDA_VISIBLE_DEVICES, or set it to cpu"
        )


def _choice() -> str:
    choice = os.environ.get(DEVICE_VARIABLE) or "auto"
    if choice not in DEVICE_CHOICES:
        raise ValueError(
            f"{DEVICE_VARIABLE} must be one of {', '.join(DEVICE_CHOICES)}, but is {choice!r}; "
            "correct or unset it"
        )
    return choice


def has_cuda() -> bool:
    """Return whether ranks compute on CUDA devices."""
    return not _stand_ins and torch.cuda.is_available() and _choice() != "cpu"


@contextmanager
def standing_in(stand_in: torch.device, backend: str | None = None) -> Iterator[None]:
    """Let :func:`device` return this device: how a step is rehearsed, or tested, without CUDA.

    Megatron must not have been prepared for CUDA in this process before.

    Args:
        stand_in: the device.
        backend: of process groups that only exchange its tensors; see :func:`device_backend`.
    """
    _stand_ins.append((stand_in, backend))
    try:
        yield
    finally:
        _stand_ins.pop()


def device() -> torch.device:
    """Return the device of this rank's parameters and batches."""
    if _stand_ins:
        return _stand_ins[-1][0]
    if has_cuda():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def device_name() -> str:
    """Return the product name of a CUDA device; of a CPU, how many threads each rank has."""
    if has_cuda():
        return torch.cuda.get_device_name()
    num_threads = torch.get_num_threads()
    return f"CPU ({num_threads} thread{'s' if num_threads > 1 else ''} per rank)"


def computes_bf16() -> bool:
    """Return whether this device has instructions for products in bf16.

    Without them a CPU takes several times as long as in fp32.
    """
    if has_cuda():
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in _BF16_CAPABILITIES)


def visible_devices() -> list[str]:
    """Return name and memory of each CUDA device that this process can use."""
    found = [
        torch.cuda.get_device_properties(index)
        for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    ]
    return [f"{one.name}, {one.total_memory / 2**30:.0f} GiB" for one in found]


def select_device(local_rank: int, num_local_ranks: int = 1) -> None:
    """Make one CUDA device the one that :func:`device` returns; nothing without CUDA.

    Args:
        local_rank: of this process on its machine: the number of its device, unless a launcher shows each
            process one device of its own.
        num_local_ranks: processes on this machine, as far as known.
    Raises:
        ValueError: there are fewer devices than ranks.
    """
    if not has_cuda():
        return
    num_devices = torch.cuda.device_count()
    if local_rank < num_devices:
        torch.cuda.set_device(local_rank)
    elif num_devices == 1 and "SLURM_PROCID" in os.environ:
        # srun --gpus-per-task=1: every task sees its own device as number 0.
        torch.cuda.set_device(0)
    else:
        raise ValueError(
            "each rank needs a device of its own, but this machine has "
            f"{max(num_local_ranks, local_rank + 1)} ranks and shows {num_devices} CUDA device(s); start at "
            f"most {num_devices} here, lower parallel.tensor, context, pipeline or data, or compute "
            "on the CPU (parallel.device=cpu)"
        )


def pinned(tensor: Tensor) -> Tensor:
    """Return a tensor in host memory that CUDA copies without making the host wait; itself without CUDA."""
    return tensor.pin_memory() if has_cuda() else tensor


def to_device(tensor: Tensor) -> Tensor:
    """Copy a tensor of the host to :func:`device` without waiting for the copy."""
    return pinned(tensor).to(device(), non_blocking=True)


def process_group_backend() -> str:
    """Return torch.distributed's backend: NCCL for CUDA tensors, gloo for those in host memory."""
    return "cpu:gloo,cuda:nccl" if has_cuda() else HOST_BACKEND


def device_backend() -> str | None:
    """Return the backend of process groups that only exchange tensors of :func:`device`; None is the default.

    A group of the default backend has one of gloo beside that of NCCL, with threads of its own on each rank,
    and connections between all of its ranks.
    """
    if _stand_ins:
        return _stand_ins[-1][1]
    return "nccl" if has_cuda() else None


def synchronize() -> None:
    """Wait until this rank's device has finished what was queued; a CPU queues nothing."""
    if has_cuda():
        torch.cuda.synchronize()


def profiled_activities() -> list[ProfilerActivity]:
    """Return what torch's profiler records: the host, and this rank's device."""
    return [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if has_cuda() else [])]


def most_memory_bytes() -> int | None:
    """Return the most memory that tensors of this process have taken on its device; None on a CPU."""
    return torch.cuda.max_memory_allocated() if has_cuda() else None


def record_memory_history() -> None:
    """Record from now on what takes and frees memory on this rank's device; nothing without CUDA."""
    if has_cuda():
        torch.cuda.memory._record_memory_history(max_entries=1_000_000)


def write_memory_history(path: Path) -> bool:
    """Write what was recorded as a snapshot for https://pytorch.org/memory_viz, and end the recording.

    Returns:
        whether there was anything to write, which is so with CUDA.
    """
    if not has_cuda():
        return False
    torch.cuda.memory._dump_snapshot(str(path))
    torch.cuda.memory._record_memory_history(enabled=None)
    return True


def device_memory_bytes() -> tuple[int, int] | None:
    """Return the free and the total memory of this rank's device; None on a CPU."""
    return torch.cuda.mem_get_info() if has_cuda() else None


def memory_report() -> str:
    """Return what torch's allocator holds on this rank's device; empty on a CPU."""
    return torch.cuda.memory_summary() if has_cuda() else ""


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
