"""Memory and dense peak speed of accelerators, from their makers' data sheets."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.cost.peaks import A100, H100_SXM, RTX_4090, DensePeak

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


def _device(name: str, memory_mib: int, peak: DensePeak) -> Device:
    return Device(
        name=name,
        memory_bytes=memory_mib * MIB,
        bfloat16_flops=peak.bfloat16_flops,
        float32_flops=peak.float32_flops,
    )


# The SXM versions and the RTX 4090; memory as nvidia-smi shows it.
DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _device("h100-80g", 81_559, H100_SXM),
        _device("h200-141g", 143_771, H100_SXM),
        _device("a100-80g", 81_920, A100),
        _device("a100-40g", 40_960, A100),
        _device("rtx4090-24g", 24_564, RTX_4090),
    )
}
