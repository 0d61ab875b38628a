"""Gradients compared with finite differences along random directions."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

STEP = 1e-6


def assert_slope(function: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> None:
    """Compare the gradient of a scalar float64 function with central differences in two directions."""
    for seed in range(2):
        analytic, numeric = _slopes(function, parameters, seed)
        assert abs(analytic) > 1e-5, "a slope of zero proves nothing"
        assert analytic == pytest.approx(numeric, rel=2e-5)


def _slopes(
    function: Callable[[], Tensor], parameters: Sequence[nn.Parameter], seed: int
) -> tuple[float, float]:
    """Slope along a random direction: by backward, and by a central difference."""
    generator = torch.Generator().manual_seed(seed)
    directions = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]
    gradients = torch.autograd.grad(function(), parameters, allow_unused=True)
    analytic = sum(
        float((gradient * direction).sum())
        for gradient, direction in zip(gradients, directions, strict=True)
        if gradient is not None
    )
    return analytic, _central_difference(function, parameters, directions)


@torch.no_grad()
def _central_difference(
    function: Callable[[], Tensor], parameters: Sequence[nn.Parameter], directions: Sequence[Tensor]
) -> float:
    values = []
    for factor in (STEP, -2 * STEP):
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.add_(direction, alpha=factor)
        values.append(float(function()))
    for parameter, direction in zip(parameters, directions, strict=True):
        parameter.add_(direction, alpha=STEP)
    return (values[0] - values[1]) / (2 * STEP)
