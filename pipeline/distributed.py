"""The process group that joins the ranks of a job."""

import logging
from datetime import timedelta

import torch
import torch.distributed

from pipeline.ranks import Ranks

__all__ = ["start_process_group", "stop_process_group"]

logger = logging.getLogger(__name__)


def start_process_group(ranks: Ranks, *, timeout_seconds: int) -> None:
    """Choose this rank's device and join the job.

    NCCL serves CUDA tensors, gloo those in host memory; without CUDA there is gloo alone.

    Args:
        ranks: place of this process.
        timeout_seconds: limit of the rendezvous and of every collective after it.
    """
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.set_device(ranks.local_rank)
    torch.distributed.init_process_group(
        backend="cpu:gloo,cuda:nccl" if has_cuda else "gloo",
        init_method=f"tcp://{ranks.master_address}:{ranks.master_port}",
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )


def stop_process_group() -> None:
    """Leave the job. Without a process group this does nothing, so it fits a ``finally``."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
