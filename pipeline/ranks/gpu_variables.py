"""Environment variables that CUDA, NCCL and torch's allocator read when they start, for ranks on GPUs.

It does not import torch, which must find them set.
"""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = [
    "DEVICE_VARIABLE",
    "STACKS_FOLDER",
    "gpu_variables",
    "has_nvidia_driver",
    "num_gpus",
    "set_gpu_variables",
]

DEVICE_VARIABLE = "MEGAPONDER_DEVICE"
"""Environment variable that chooses the device, see :mod:`megatron_ext.device`."""

STACKS_FOLDER = "stacks"
"""In the run's folder: what every rank was doing when the run hung, or ran out of memory."""

# Made by the driver; the second one by Windows for its subsystem for Linux.
_DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
# What newer and older releases of torch call them; newer ones warn of the older names.
_ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
# Of a rank: far more than are under way at once.
_RECORDED_COLLECTIVES = 2000
# Importing torch from a slow disk takes long.
_ANSWER_SECONDS = 120
_RECORDER_VARIABLES = ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE")
_DUMP_VARIABLES = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")


def has_nvidia_driver() -> bool:
    """Return whether this machine may have a CUDA device."""
    return any(file.exists() for file in _DRIVER_FILES)


def num_gpus() -> int:
    """Return how many CUDA devices torch finds for this process; asked in a process of its own.

    0 on a machine without a driver, where nothing is started, and where torch does not answer in time.
    """
    if not has_nvidia_driver():
        return 0
    command = [sys.executable, "-P", "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=_ANSWER_SECONDS, check=True, text=True)
        return int(answer.stdout)
    except (subprocess.SubprocessError, OSError, ValueError):
        return 0


def gpu_variables(
    given: Mapping[str, str], *, dump_folder: Path, tensor: int = 1, is_deterministic: bool = False
) -> dict[str, str]:
    """Return what ranks on GPUs need and the environment does not set.

    Args:
        given: the environment.
        dump_folder: where NCCL's watchdog writes which collectives were under way when one timed out.
        tensor: tensor-parallel ranks.
        is_deterministic: whether runs repeat to the bit.
    """
    wanted: dict[tuple[str, ...], str] = {
        # The rows of a pass, and with documents those of each step, have other sizes: fixed segments would
        # lose memory to fragments.
        _ALLOCATOR_VARIABLES: "expandable_segments:True",
        # The watchdog of a run writes it when the run hangs.
        _RECORDER_VARIABLES: str(_RECORDED_COLLECTIVES),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT",): "1",
        _DUMP_VARIABLES: str(dump_folder / "nccl_"),
    }
    if tensor > 1:
        # Megatron relies on kernels starting in the order in which they are queued.
        wanted[("CUDA_DEVICE_MAX_CONNECTIONS",)] = "1"
    if is_deterministic:
        # Without a workspace of its own for each stream, cuBLAS may choose another order of its sums.
        wanted[("CUBLAS_WORKSPACE_CONFIG",)] = ":4096:8"
    return {names[0]: value for names, value in wanted.items() if not any(map(given.get, names))}


def set_gpu_variables(*, dump_folder: Path, tensor: int, is_deterministic: bool) -> None:
    """Set the variables for this process and those that it starts; nothing on a machine without a driver."""
    if has_nvidia_driver():
        os.environ |= gpu_variables(
            os.environ, dump_folder=dump_folder, tensor=tensor, is_deterministic=is_deterministic
        )
