"""torch, Megatron-Core, and the GPUs that they can use."""

import os
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec

from pipeline.checkpoint.origin import version_of
from pipeline.doctor.finding import Finding, State

__all__ = ["device_finding", "device_findings", "driver_lines"]

_SECONDS = 30


def device_findings() -> Iterator[Finding]:
    """Yield the findings on torch, Megatron-Core and devices."""
    torch = _import_finding("torch", "torch")
    yield torch
    if torch.state is not State.OK:
        return
    yield _import_finding("Megatron-Core", "megatron.core.parallel_state", package="megatron-core")
    yield _kernels()
    from torch.version import cuda as built_for

    from megatron_ext.device import DEVICE_CHOICES, DEVICE_VARIABLE, computes_bf16, visible_devices

    chosen = os.environ.get(DEVICE_VARIABLE) or "auto"
    if chosen in DEVICE_CHOICES and not computes_bf16():
        found = "this CPU has no instructions for bf16 and takes several times as long with it as with fp32"
        yield Finding(name="precision", state=State.NOTE, found=found, cure="set training.precision to fp32")
    yield device_finding(
        chosen=chosen,
        seen=visible_devices(),
        driver=driver_lines(),
        built_for=built_for,
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES"),
    )


def device_finding(
    *, chosen: str, seen: list[str], driver: list[str], built_for: str | None, hidden: str | None
) -> Finding:
    """Return whether the GPUs of the machine can be used.

    Args:
        chosen: what MEGAPONDER_DEVICE names, or auto.
        seen: the devices that torch can use.
        driver: a line for each GPU that the driver reports.
        built_for: the version of CUDA that torch was built for; None: for CPUs alone.
        hidden: CUDA_VISIBLE_DEVICES; None if it is not set.
    """
    version = f"torch for CUDA {built_for}" if built_for else "torch for CPUs"
    if chosen not in ("auto", "cpu", "cuda"):
        cure = "set MEGAPONDER_DEVICE to auto, cpu or cuda, or unset it"
        return _device(State.BROKEN, f"MEGAPONDER_DEVICE is {chosen}", cure)
    if chosen == "cpu":
        return _device(State.NOTE, "the CPU, as MEGAPONDER_DEVICE says")
    if seen:
        by = f"; driver: {driver[0]}" if driver else ""
        return _device(State.OK, f"{'; '.join(seen)}; {version}{by}")
    if not driver and chosen == "auto":
        return _device(State.NOTE, "the CPU: there is no GPU, or no driver of one")
    if not driver:
        cure = "install NVIDIA's driver (for a container: --gpus all), or unset MEGAPONDER_DEVICE"
        return _device(State.BROKEN, "no GPU, but MEGAPONDER_DEVICE asks for one", cure)
    if hidden is not None:
        found = f"CUDA_VISIBLE_DEVICES={hidden} hides {len(driver)} GPU(s)"
        return _device(State.WARNING, found, "unset CUDA_VISIBLE_DEVICES")
    cure = f"install a driver for CUDA {built_for}" if built_for else "install torch for CUDA"
    return _device(State.BROKEN, f"{'; '.join(driver)}, which {version} cannot use", cure)


def _device(state: State, found: str, cure: str = "") -> Finding:
    return Finding(name="device", state=state, found=found, cure=cure)


def driver_lines() -> list[str]:
    """Return name, driver version and memory of each GPU, as the driver reports them; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        finished = subprocess.run(
            [program, *query], capture_output=True, text=True, timeout=_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in finished.stdout.splitlines() if line.strip()]


def _import_finding(name: str, module: str, *, package: str | None = None) -> Finding:
    """Return whether a module can be imported, which shows more than that it is installed."""
    try:
        # Megatron warns of optional libraries, which have a finding of their own.
        with warnings.catch_warnings(action="ignore"):
            import_module(module)
    # A broken library raises errors of any type.
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        return Finding(
            name=name,
            state=State.BROKEN,
            found=f"cannot be imported: {reason}",
            cure="pip install -e . in the folder of megaponder's sources",
        )
    return Finding(name=name, state=State.OK, found=version_of(package or module) or "of an unknown version")


def _kernels() -> Finding:
    there = [name for name in ("apex", "transformer_engine") if find_spec(name) is not None]
    found = ", ".join(there) if there else "none of apex and Transformer Engine, which are optional"
    return Finding(name="fused kernels", state=State.OK if there else State.NOTE, found=found)
