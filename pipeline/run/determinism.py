"""Bitwise reproducible runs, on devices where that has to be requested."""

import torch
import torch.backends.cudnn
import torch.utils.deterministic

__all__ = ["compute_deterministically"]


def compute_deterministically() -> None:
    """Let torch use algorithms that repeat to the bit, and raise where it has none, for this process.

    cuBLAS reads its part from ``CUBLAS_WORKSPACE_CONFIG``, see :mod:`pipeline.ranks.gpu_variables`.
    """
    torch.use_deterministic_algorithms(True)
    # Filling memory that is overwritten anyhow costs time. Nothing reads it before.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
