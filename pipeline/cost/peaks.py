"""Dense peak speed and memory of accelerators, from their makers' data sheets."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePeak:
    """Dense matrix products per second.

    Attributes:
        bfloat16_flops: half of what is advertised with sparsity.
        float32_flops: without TF32.
    """

    bfloat16_flops: float
    float32_flops: float

    def at(self, precision: Literal["fp32", "bf16"]) -> float:
        """Return the peak of a run's precision."""
        return self.float32_flops if precision == "fp32" else self.bfloat16_flops


def _peak(bfloat16_tflops: float, float32_tflops: float) -> DensePeak:
    return DensePeak(bfloat16_flops=bfloat16_tflops * 1e12, float32_flops=float32_tflops * 1e12)


H100_SXM = _peak(989.4, 66.9)
A100 = _peak(311.9, 19.5)
RTX_4090 = _peak(165.2, 82.6)

# NVIDIA's data sheets. The first pattern found in a name counts, so boards with less power come before the
# SXM modules of their chip.
PEAKS: tuple[tuple[str, DensePeak], ...] = (
    (r"\bGB200\b", _peak(2500.0, 80.0)),
    (r"\bB200\b", _peak(2250.0, 80.0)),
    (r"\bH200 NVL\b", _peak(835.5, 60.0)),
    (r"\b(G?H200|GH200)\b", H100_SXM),
    (r"\bH100 NVL\b", _peak(835.5, 60.0)),
    (r"\bH100 PCIe\b", _peak(756.4, 51.2)),
    (r"\bH100\b", H100_SXM),
    (r"\bH800\b", H100_SXM),
    (r"\bA(100|800)\b", A100),
    (r"\bL40S\b", _peak(362.1, 91.6)),
    (r"\bL40\b", _peak(181.1, 90.5)),
    (r"\bL4\b", _peak(121.2, 30.3)),
    (r"\bA40\b", _peak(149.7, 37.4)),
    (r"\bA10\b", _peak(125.0, 31.2)),
    (r"\bRTX 6000 Ada\b", _peak(364.2, 91.1)),
    (r"\bRTX 4090\b", RTX_4090),
    (r"\bRTX 3090\b", _peak(71.2, 35.6)),
)


def dense_peak(device_name: str) -> DensePeak | None:
    """Find the peak of a device.

    Args:
        device_name: as CUDA reports it, such as ``NVIDIA H100 80GB HBM3``.
    Returns:
        None for a device that is not in the table, a slice of one (MIG), and a CPU: their utilisation is
        unknown, and not guessed.
    """
    if "MIG" in device_name:
        return None
    return next((peak for pattern, peak in PEAKS if re.search(pattern, device_name)), None)


# Ranks that compute on the CPU, by their name on the command line.
CPU = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """Bytes per second that a device can move, by data sheet.

    Attributes:
        memory: read or written in its own memory.
        link: received from the other devices of its machine, by NVLink or PCI Express.
        network: received from other machines.
    """

    memory: float
    link: float
    network: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a rank of a run can be planned for.

    Attributes:
        name: used on the command line.
        memory_bytes: what nvidia-smi shows as total, or a rank's share of a machine's memory.
        peak: dense matrix products per second; None for a CPU, where it is unknown.
        bandwidth: of memory and connections; None where it is unknown.
        is_hopper: whether its attention kernels reach the share of the peak that was measured on an H200.
    """

    name: str
    memory_bytes: int
    peak: DensePeak | None
    bandwidth: Bandwidth | None = None
    is_hopper: bool = False

    @property
    def is_cpu(self) -> bool:
        """Whether ranks compute on the CPU."""
        return self.name == CPU


# One adapter of 400 Gbit/s for each device, as in NVIDIA's DGX H100, and one of 200 Gbit/s in a DGX A100.
_DGX_H100, _DGX_A100 = 50e9, 25e9
# Half of what is advertised for both directions together: NVLink 4, NVLink 3, and PCI Express 4.0 x16.
_NVLINK_4, _NVLINK_3, _PCI_EXPRESS_4 = 450e9, 300e9, 32e9


def _device(
    name: str, memory_mib: int, peak: DensePeak, *, memory: float, link: float, network: float
) -> Device:
    return Device(
        name=name,
        memory_bytes=memory_mib * MIB,
        peak=peak,
        bandwidth=Bandwidth(memory=memory, link=link, network=network),
        is_hopper=peak is H100_SXM,
    )


# The SXM versions and the RTX 4090; memory as nvidia-smi shows it, bandwidths by NVIDIA's data sheets.
DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _device("h100-80g", 81_559, H100_SXM, memory=3.35e12, link=_NVLINK_4, network=_DGX_H100),
        _device("h200-141g", 143_771, H100_SXM, memory=4.8e12, link=_NVLINK_4, network=_DGX_H100),
        _device("a100-80g", 81_920, A100, memory=2.039e12, link=_NVLINK_3, network=_DGX_A100),
        _device("a100-40g", 40_960, A100, memory=1.555e12, link=_NVLINK_3, network=_DGX_A100),
        _device("rtx4090-24g", 24_564, RTX_4090, memory=1.008e12, link=_PCI_EXPRESS_4, network=_DGX_A100),
    )
}
