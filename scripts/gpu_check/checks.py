"""The checks in their order, and how long each may take on a machine like one H200 with 16 cores."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.gpu_check.place import Findings, Place

# All together, on one GPU.
TOTAL_SECONDS = 480


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check.

    Attributes:
        name: on the command line.
        about: what it shows.
        limit_seconds: after which it is ended.
        module: in this package; its `run` is called.
        part: which of the module's checks.
    """

    name: str
    about: str
    limit_seconds: int
    module: str
    part: str = ""

    def load(self) -> "Callable[[Place], Findings]":
        """Import the function that does it."""
        module = import_module(f"scripts.gpu_check.{self.module}")
        function: Callable[[Place], Findings] = getattr(module, self.part or "run")
        return function


CHECKS = (
    Check(name="machine", about="versions, matrix product, copies", limit_seconds=40, module="machine"),
    Check(name="golden", about="golden vectors on the device", limit_seconds=110, module="golden"),
    Check(
        name="attention", about="kernels by head size, against float64", limit_seconds=75, module="kernels"
    ),
    Check(
        name="step",
        # The first that compiles fused functions of these sizes; torch keeps them on disk for the others.
        about="a step of PonderLM-3 410M: MFU, memory beside plan and rehearsal, waits",
        limit_seconds=150,
        module="steps",
        part="step",
    ),
    Check(
        name="documents",
        about="the price of documents kept apart",
        limit_seconds=50,
        module="steps",
        part="documents",
    ),
    Check(
        name="methods",
        about="a step of vanilla, PonderLM-2 and AdaPonderLM 410M",
        limit_seconds=110,
        module="steps",
        part="methods",
    ),
    Check(
        name="fused",
        about="a step with fused functions, and the same operation by operation",
        limit_seconds=75,
        module="steps",
        part="fused",
    ),
    Check(
        name="cudnn",
        about="a step with cuDNN's attention beside FlashAttention",
        limit_seconds=50,
        module="steps",
        part="cudnn",
    ),
    Check(
        name="repeat",
        about="bf16 beside fp32, and whether runs repeat to the bit",
        limit_seconds=60,
        module="repeat",
    ),
    Check(name="decode", about="milliseconds of a decoded token, 410M", limit_seconds=60, module="decoding"),
    Check(
        name="resume",
        about="save in the background, resume, compare with an uninterrupted run",
        limit_seconds=90,
        module="training",
        part="resume",
    ),
    Check(
        name="faults",
        about="exit codes after a stop signal, without memory, with too few GPUs",
        limit_seconds=90,
        module="training",
        part="faults",
    ),
)
BY_NAME = {check.name: check for check in CHECKS}
