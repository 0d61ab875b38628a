"""Which fused kernel computes attention on CUDA, and whether it computes it right.

torch chooses among several. cuDNN's is the fastest on recent devices, but prepares itself for every new
length of its inputs, for tens of milliseconds, and some of its releases have given wrong numbers. So it is
left out of torch's choice everywhere, and only runs where rows have one length in all steps and the run asks
for it.

B = batch, A = query heads, G = key/value heads, R = rows, d = head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_ext.ponder.attention import (
    dense_bias_attention,
    extended_keys,
    extended_size,
    extended_values,
    key_weighted_attention,
    widened_query,
)

# In this order; further ones, so that what cuDNN cannot compute is computed all the same.
_CUDNN_FIRST = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
_NAMES = {
    SDPBackend.MATH: "math",
    SDPBackend.FLASH_ATTENTION: "flash",
    SDPBackend.EFFICIENT_ATTENTION: "efficient",
    SDPBackend.CUDNN_ATTENTION: "cudnn",
}
# log w of the keys of a self-test, from no effect to keys that must vanish without a trace.
_LOG_WEIGHTS = (0.0, -0.7, -5.0, -120.0, -1e4)
# A kernel may be so many times as far from float64 as plain products in its own precision: three bits. One
# that only rounds in another order stays below half of it, while one wrong number is far above.
LARGEST_RATIO = 8.0


def leave_out_cudnn() -> None:
    """Take cuDNN's attention out of torch's choice, for this process."""
    torch.backends.cuda.enable_cudnn_sdp(False)


@contextmanager
def preferring_cudnn(is_preferred: bool) -> Iterator[None]:
    """Let cuDNN's attention come first in torch's choice, or change nothing.

    What is computed inside of this context has its gradients from the same kernel.
    """
    if not is_preferred:
        yield
        return
    with sdpa_kernel(_CUDNN_FIRST, set_priority=True):
        yield


def is_cudnn_preferred() -> bool:
    """Return whether this code runs in the context of :func:`preferring_cudnn`."""
    return bool(torch._C._get_sdp_priority_order()[0] == SDPBackend.CUDNN_ATTENTION.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionSizes:
    """Attention as one rank of a run computes it.

    Attributes:
        num_heads, num_groups, head_size: A, G, d.
        num_rows: R.
        dtype: of queries, keys and values.
        weighs_keys: whether keys have log weights.
    """

    num_heads: int
    num_groups: int
    head_size: int
    num_rows: int
    dtype: torch.dtype
    weighs_keys: bool

    @property
    def width(self) -> int:
        """Channels that a kernel gets, with the columns of the weights."""
        return extended_size(self.head_size, torch.float32 if self.weighs_keys else None, self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCheck:
    """Result of the self-test of a kernel.

    Attributes:
        kernel: which one ran: flash, cudnn, efficient or math.
        errors: of the output and of each gradient, largest distance to float64 over that of plain products in
            the kernel's precision; infinite where a value is not finite.
    """

    kernel: str
    errors: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest of the errors."""
        return max(self.errors.values())

    @property
    def is_right(self) -> bool:
        """Whether the kernel can be trusted with these sizes."""
        return self.worst <= LARGEST_RATIO


class _Attention(Protocol):
    def __call__(self, query: Tensor, key: Tensor, value: Tensor, log_weight: Tensor | None = None) -> Tensor:
        """Attend causally."""
        ...


def check_kernel(sizes: AttentionSizes, device: torch.device, *, prefers_cudnn: bool = False) -> KernelCheck:
    """Compute causal attention of random rows, forward and backward, and compare it with float64.

    Args:
        sizes: of the run; memory grows with num_heads * num_rows squared.
        device: where.
        prefers_cudnn: see :func:`preferring_cudnn`.
    """
    inputs = _random_inputs(sizes, device)
    with preferring_cudnn(prefers_cudnn):
        kernel = _chosen(sizes, inputs)
        fused = _with_gradients(key_weighted_attention, inputs)
    plain = _with_gradients(dense_bias_attention, inputs)
    exact = _with_gradients(dense_bias_attention, {name: value.double() for name, value in inputs.items()})
    errors = {name: error_ratio(fused[name], plain[name], exact[name]) for name in exact}
    return KernelCheck(kernel=kernel, errors=errors)


def _random_inputs(sizes: AttentionSizes, device: torch.device) -> dict[str, Tensor]:
    """Draw [1, A or G, R, d], on the host so that every device computes the same; and log w, [1, R]."""
    generator = torch.Generator().manual_seed(1)

    def draw(num_heads: int) -> Tensor:
        shape = (1, num_heads, sizes.num_rows, sizes.head_size)
        return torch.randn(shape, generator=generator).to(device, sizes.dtype)

    inputs = {"query": draw(sizes.num_heads), "key": draw(sizes.num_groups), "value": draw(sizes.num_groups)}
    inputs["gradient"] = draw(sizes.num_heads)
    if sizes.weighs_keys:
        steps = torch.tensor(_LOG_WEIGHTS).repeat(-(-sizes.num_rows // len(_LOG_WEIGHTS)))
        inputs["log_weight"] = steps[: sizes.num_rows].unsqueeze(0).to(device)
    return inputs


def _chosen(sizes: AttentionSizes, inputs: dict[str, Tensor]) -> str:
    """Return the kernel that torch chooses for the inputs as they get to it."""
    query, key, value = (inputs[name] for name in ("query", "key", "value"))
    if sizes.weighs_keys:
        query, value = widened_query(query, sizes.width), extended_values(value, sizes.width)
        key = extended_keys(key, inputs["log_weight"].unsqueeze(1), sizes.width)
    query, key, value = (x.requires_grad_() for x in (query.detach(), key.detach(), value.detach()))
    choice = torch._fused_sdp_choice(
        query, key, value, None, 0.0, True, enable_gqa=query.shape[1] != key.shape[1]
    )
    return _NAMES.get(SDPBackend(choice), str(choice))


def _with_gradients(attend: _Attention, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the output of an attention and the gradients of all that goes in."""
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items() if name != "gradient"}
    output = attend(**leaves)
    gradients = torch.autograd.grad(output, list(leaves.values()), inputs["gradient"])
    return {"output": output.detach(), **dict(zip(leaves, gradients, strict=True))}


def error_ratio(fused: Tensor, plain: Tensor, exact: Tensor) -> float:
    """Return how many times as far from `exact` a result is as a plain one; infinite where not finite."""
    if not bool(torch.isfinite(fused).all()):
        return float("inf")
    error, usual = (float((x.double() - exact).abs().max()) for x in (fused, plain))
    # Plain products may hit the very value; the precision of the type is the least that is granted.
    least = torch.finfo(fused.dtype).eps * float(exact.abs().max())
    return error / max(usual, least)
