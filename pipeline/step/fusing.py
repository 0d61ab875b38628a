"""Whether a training runs fused functions, and whether this machine can compile them."""

import importlib.util
import logging
import time

import torch
import torch.distributed

from megatron_ext.device import device, has_cuda
from megatron_ext.model.config import PonderTransformerConfig
from megatron_ext.model.fused_check import check_fused
from megatron_ext.model.kernels import LARGEST_RATIO
from megatron_ext.parallel.groups import ParallelGroups
from megatron_ext.ponder.fusing import compile_fused
from pipeline.config.schema import RunConfig

__all__ = ["can_fuse"]

logger = logging.getLogger(__name__)


def can_fuse(config: RunConfig, settings: PonderTransformerConfig, groups: ParallelGroups) -> bool:
    """Return whether the model of a training consists of fused functions, the same on all ranks.

    On CUDA they are compiled and compared with what they replace; where that fails on any rank, none uses
    them and the log says why. A stand-in for CUDA runs them uncompiled. Every rank calls it.

    Args:
        config: the run.
        settings: of its model.
        groups: of its ranks.
    """
    if not config.fuses or device().type == "cpu":
        return False
    if not has_cuda():
        return True
    started = time.monotonic()
    problem = _first_of_ranks(_problem(settings, config.training.micro_batch_size), groups)
    if problem is not None:
        compile_fused(None)
        logger.warning(
            "nothing is fused: layers run operation by operation, slower and with more memory, because %s; "
            "training.fused=never turns this attempt off",
            problem,
        )
        return False
    logger.info(
        "fused functions are compiled by torch %s, and agree with separate operations (%.0f s)",
        torch.__version__,
        time.monotonic() - started,
    )
    return True


def _problem(settings: PonderTransformerConfig, micro_batch_size: int) -> str | None:
    """Compile and check on this rank; return what is wrong, or None."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, which torch.compile needs on CUDA"
    compile_fused("inductor")
    try:
        errors = check_fused(settings, micro_batch_size, device())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a compiler may raise, down to a missing C compiler
        first_line = next(iter(str(error).strip().splitlines()), "no message")
        return f"torch.compile failed ({type(error).__name__}: {first_line})"
    worst = max(errors, key=lambda name: errors[name])
    if errors[worst] <= LARGEST_RATIO:
        return None
    return f"the compiled {worst} is {errors[worst]:.1f} times as far from float64 as separate operations"


def _first_of_ranks(problem: str | None, groups: ParallelGroups) -> str | None:
    found: list[str | None] = [None] * groups.world_size
    torch.distributed.all_gather_object(found, problem)
    return next((one for one in found if one is not None), None)
