"""Kernels of attention by head size: speed, error against float64, the first call at a new length."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attend

from megatron_ext.device import device, has_cuda, synchronize
from megatron_ext.model.kernels import AttentionSizes, check_kernel
from megatron_ext.ponder.attention import attend_one_by_one
from megatron_ext.ponder.documents import attend_to_documents
from scripts.gpu_check.place import Findings, Place, seconds_of

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
# Plain heads of 64, 80 and 128 channels, and the same with the columns of weights.
WIDTHS = (64, 72, 80, 88, 128, 136)
NUM_HEADS = 16
# One kernel and a loop round differently; both are this close to each other in bf16.
BF16_TOLERANCE = 0.02


def run(place: Place) -> Findings:
    """Measure every kernel that the device has."""
    found = Findings()
    _check_right(place, found)
    speeds = [
        {"rows": rows, "width": width, "kernel": name} | _speed(rows, width, kernel)
        for rows in place.choose((2048, 8192), (32,))
        for width in place.choose(WIDTHS, (16,))
        for name, kernel in KERNELS.items()
    ]
    found.figures["speeds"] = speeds
    found.figures["new_lengths_ms"] = {name: _new_lengths(place, kernel) for name, kernel in KERNELS.items()}
    found.figures["documents_ms"] = _documents(place, found)
    best = _best_by_kernel(speeds)
    found.summary = "; ".join(
        f"{name} {forward:.0f} / {backward:.0f} TFLOP/s" for name, (forward, backward) in best.items()
    )
    return found


def _check_right(place: Place, found: Findings) -> None:
    """Compare the kernels that runs may choose with float64."""
    results = []
    plain = AttentionSizes(
        num_heads=place.choose(NUM_HEADS, 4),
        num_groups=place.choose(NUM_HEADS, 2),
        head_size=64,
        num_rows=place.choose(1024, 48),
        dtype=torch.bfloat16,
        weighs_keys=False,
    )
    for head_size in place.choose((64, 80, 128), (8,)):
        for weighs_keys in (False, True):
            sizes = replace(plain, head_size=head_size, weighs_keys=weighs_keys)
            for prefers_cudnn in (False, True) if has_cuda() else (False,):
                result = _checked(sizes, prefers_cudnn=prefers_cudnn)
                results.append({"width": sizes.width, "weighs_keys": weighs_keys} | result)
                # cuDNN's is reported, and only refused where a run asks for it.
                is_used = result["kernel"] != "cudnn"
                found.expect(
                    result["is_right"] or not is_used, f"{result['kernel']} at {sizes.width}: {result}"
                )
    found.figures["against_float64"] = results


def _checked(sizes: AttentionSizes, *, prefers_cudnn: bool) -> dict[str, Any]:
    try:
        check = check_kernel(sizes, device(), prefers_cudnn=prefers_cudnn)
    except RuntimeError as error:
        kernel = "cudnn" if prefers_cudnn else "chosen"
        return {"kernel": kernel, "is_right": False, "error": str(error)[:200]}
    # JSON has no infinity.
    errors = {name: min(value, 1e9) for name, value in check.errors.items()}
    return {"kernel": check.kernel, "is_right": check.is_right, "ratios": errors}


def _speed(rows: int, width: int, kernel: SDPBackend) -> dict[str, Any]:
    """Time causal attention of one sequence, forward and backward."""
    query, key, value, gradient = (_random(1, NUM_HEADS, rows, width) for _ in range(4))
    leaves = [x.requires_grad_() for x in (query, key, value)]

    def forward() -> Tensor:
        return attend(query, key, value, is_causal=True)

    flops = 2 * 2 * rows**2 * width * NUM_HEADS / 2
    try:
        with sdpa_kernel([kernel]):
            first = _elapsed(forward)
            ahead = seconds_of(forward)
            both = seconds_of(lambda: torch.autograd.grad(forward(), leaves, gradient))
    except RuntimeError as error:
        return {"error": str(error)[:120]}
    back = max(both - ahead, 1e-9)
    return {
        "first_ms": 1e3 * first,
        "forward_ms": 1e3 * ahead,
        "backward_ms": 1e3 * back,
        "forward_tflops": flops / ahead / 1e12,
        "backward_tflops": 2.5 * flops / back / 1e12,
    }


def _new_lengths(place: Place, kernel: SDPBackend) -> dict[str, Any]:
    """Time single calls, each at a length that was not seen before: [decoding], [training], milliseconds."""
    width = place.choose(72, 16)
    lengths = range(501, place.choose(511, 503))
    times: dict[str, list[float]] = {"decoding": [], "training": []}
    try:
        with sdpa_kernel([kernel]):
            for length in lengths:
                query, key = _random(8, NUM_HEADS, 1, width), _random(8, NUM_HEADS, length, width)
                times["decoding"].append(1e3 * _elapsed(partial(attend, query, key, key)))
                rows = _random(1, NUM_HEADS, length, width).requires_grad_()
                times["training"].append(1e3 * _elapsed(partial(_attend_and_back, rows)))
    except RuntimeError as error:
        return {"error": str(error)[:120]}
    return dict(times)


def _attend_and_back(rows: Tensor) -> None:
    attend(rows, rows, rows, is_causal=True).sum().backward()


def _documents(place: Place, found: Findings) -> dict[str, Any]:
    """Time many documents of one row, by one kernel and one by one, forward and backward."""
    rows, number, width = place.choose((8192, 32, 72), (64, 4, 16))
    length = rows // number
    segments = (tuple((start, start + length) for start in range(0, rows, length)),)
    query, key, value, gradient = (_random(1, NUM_HEADS, rows, width) for _ in range(4))
    leaves = [x.requires_grad_() for x in (query, key, value)]
    outputs: dict[str, list[Tensor]] = {}
    times: dict[str, float] = {}
    ways: dict[str, Callable[..., Tensor]] = {"one by one": attend_one_by_one}
    if has_cuda():
        ways["one kernel"] = attend_to_documents
    for name, way in ways.items():

        def both(way: Callable[..., Tensor] = way) -> list[Tensor]:
            output = way(query, key, value, segments, scale=width**-0.5)
            return [output, *torch.autograd.grad(output, leaves, gradient)]

        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
            outputs[name] = both()
            times[name] = 1e3 * seconds_of(both)
    if len(outputs) == 2:
        pairs = zip(*outputs.values(), strict=True)
        gap = max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
        found.expect(gap < BF16_TOLERANCE, f"documents by one kernel differ from one by one by {gap:.3g}")
    return dict(times)


def _best_by_kernel(speeds: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    best: dict[str, tuple[float, float]] = {}
    for row in speeds:
        if "error" not in row:
            pair = (row["forward_tflops"], row["backward_tflops"])
            best[row["kernel"]] = max(best.get(row["kernel"], (0.0, 0.0)), pair)
    return best


def _random(*shape: int) -> Tensor:
    return torch.randn(shape, device=device(), dtype=torch.bfloat16)


def _elapsed(action: Callable[[], object]) -> float:
    synchronize()
    started = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - started
