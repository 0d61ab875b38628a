"""The process group of a job."""

import logging
from datetime import timedelta

import torch.distributed
from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store
from torch.distributed.rendezvous import rendezvous

from megatron_ext.device import process_group_backend, select_device
from pipeline.ranks.environment import Ranks

__all__ = ["RendezvousError", "start_process_group", "stop_process_group"]

logger = logging.getLogger(__name__)


class RendezvousError(RuntimeError):
    """Not all ranks of the job have connected."""


def start_process_group(ranks: Ranks, *, timeout_seconds: int) -> None:
    """Choose this rank's device and join the job.

    Args:
        ranks: this process among the ranks; a limit for the rendezvous that the launcher set wins.
        timeout_seconds: limit of every collective, and of the rendezvous if the launcher set none.
    Raises:
        RendezvousError: some ranks did not connect in time, or rank 0 cannot be reached.
    """
    select_device(ranks.local_rank)
    store = _meet(ranks, ranks.start_timeout_seconds or timeout_seconds)
    store.set_timeout(timedelta(seconds=timeout_seconds))
    torch.distributed.init_process_group(
        backend=process_group_backend(),
        store=store,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )


def _meet(ranks: Ranks, limit_seconds: int) -> Store:
    """Wait for the other ranks at the address of rank 0."""
    address = f"{ranks.master_address}:{ranks.master_port}"
    meeting = rendezvous(
        f"tcp://{address}", ranks.rank, ranks.world_size, timeout=timedelta(seconds=limit_seconds)
    )
    store: Store
    try:
        store, _, _ = next(meeting)
    except DistError as error:
        raise RendezvousError(
            f"all {ranks.world_size} ranks must meet at {address} within {limit_seconds} s, but for rank "
            f"{ranks.rank} they did not ({str(error).splitlines()[0]}); look into the logs of the other "
            "ranks: one did not start, has ended, or cannot reach that address"
        ) from error
    return store


def stop_process_group() -> None:
    """Destroy the process group, if there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
