"""Dense peak speed of accelerators, from their makers' data sheets, by the name that CUDA gives them."""

import re
from dataclasses import dataclass
from typing import Literal


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

# NVIDIA's data sheets. The first pattern that is found in a name counts, so that boards with less power
# stand before the SXM modules of their chip.
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
        device_name: such as ``NVIDIA H100 80GB HBM3``.
    Returns:
        None for a device that is not in the table, a slice of one (MIG), and a CPU: its utilisation is not
        known, and not guessed.
    """
    if "MIG" in device_name:
        return None
    return next((peak for pattern, peak in PEAKS if re.search(pattern, device_name)), None)
