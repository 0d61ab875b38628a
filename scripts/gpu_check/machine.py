"""The machine: versions, and how fast its device multiplies and copies."""

import platform
from importlib.metadata import version

import torch

from megatron_ext.device import device, device_memory_bytes, device_name
from pipeline.cost.peaks import GIB, dense_peak
from scripts.gpu_check.place import Findings, Place, seconds_of


def run(place: Place) -> Findings:
    """Describe the machine; nothing can be wrong but that it does not compute."""
    size, copied = place.choose((8192, 2 * GIB), (128, 2**16))
    left, right = (torch.randn(size, size, device=device(), dtype=torch.bfloat16) for _ in range(2))
    source = torch.empty(copied, device=device(), dtype=torch.uint8)
    target = torch.empty_like(source)
    flops = 2 * size**3 / seconds_of(lambda: left @ right)
    copy = 2 * copied / seconds_of(lambda: target.copy_(source))
    peak = dense_peak(device_name())
    memory = device_memory_bytes()
    figures = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "megatron_core": version("megatron-core"),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "attention_order": [int(kernel) for kernel in torch._C._get_sdp_priority_order()],
        "memory_gib": None if memory is None else memory[1] / GIB,
        "free_gib": None if memory is None else memory[0] / GIB,
        "product_tflops": flops / 1e12,
        "copy_tb_per_second": copy / 1e12,
        "peak_tflops": None if peak is None else peak.bfloat16_flops / 1e12,
    }
    summary = (
        f"torch {torch.__version__}, {flops / 1e12:,.0f} TFLOP/s in a product of {size:,}, "
        f"{copy / 1e12:.2f} TB/s copied"
    )
    return Findings(figures=figures, summary=summary)
