"""Name and size of the machine that a measurement ran on."""

import os
import platform
from pathlib import Path

import torch

CPU_FACTS = Path("/proc/cpuinfo")


def machine_name() -> str:
    """Return number and name of the accelerators, or of the processor if there are none."""
    if torch.cuda.is_available():
        return f"{num_processors()} x {torch.cuda.get_device_name()}"
    return f"{_processor()}, {num_processors()} cores"


def num_processors() -> int:
    """Return the number of accelerators, or else of cores, that this process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else len(os.sched_getaffinity(0))


def _processor() -> str:
    lines = CPU_FACTS.read_text(encoding="utf-8").splitlines() if CPU_FACTS.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()
