"""Memory and dense peak speed of accelerators, from their makers' data sheets."""

from collections.abc import Mapping
from dataclasses import dataclass

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator.

    Attributes:
        name: by which it is asked for.
        memory_bytes: what nvidia-smi shows as total.
        bfloat16_flops: dense matrix products per second in bf16; half of what is advertised with sparsity.
        float32_flops: the same in float32, without TF32.
    """

    name: str
    memory_bytes: int
    bfloat16_flops: float
    float32_flops: float


def _device(name: str, memory_mib: int, bfloat16_tflops: float, float32_tflops: float) -> Device:
    return Device(
        name=name,
        memory_bytes=memory_mib * MIB,
        bfloat16_flops=bfloat16_tflops * 1e12,
        float32_flops=float32_tflops * 1e12,
    )


# NVIDIA's data sheets of the SXM versions and of the RTX 4090; memory as nvidia-smi shows it.
DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _device("h100-80g", 81_559, 989.4, 66.9),
        _device("h200-141g", 143_771, 989.4, 66.9),
        _device("a100-80g", 81_920, 311.8, 19.5),
        _device("a100-40g", 40_960, 311.8, 19.5),
        _device("rtx4090-24g", 24_564, 165.2, 82.6),
    )
}
