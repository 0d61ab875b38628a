"""Name the ranks that no longer answer when a collective has failed.

A collective that waits in vain says that it waited, not for whom: in a pipeline every stage waits for its
neighbour. So each rank whose collective has failed reports in the job's store and looks who else does; a rank
that has died or hangs does not.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from megatron_ext.device import HOST_BACKEND
from pipeline.shared.bounded import within

__all__ = ["LostRanksError", "naming_lost_ranks", "ranks_that_do_not_answer"]

logger = logging.getLogger(__name__)

# Ranks that wait for the same one give up within moments of each other.
WAIT_SECONDS = 5.0
_POLL_SECONDS = 0.1
# A store whose process is stopped never answers.
_STORE_SECONDS = 2.0


class LostRanksError(RuntimeError):
    """Ranks of the job have died or hang."""


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Around all work of a rank in a started process group.

    Raises:
        LostRanksError: in place of the error of a collective, if there are ranks that do not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_a_collective(error):
            raise
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        store = PrefixStore("roll call", _get_default_store())
        silent = ranks_that_do_not_answer(store, rank, world_size, wait_seconds=WAIT_SECONDS)
        if not silent:
            raise
        raise LostRanksError(
            f"rank {rank} of {world_size} waited in vain, and ranks {silent} have not answered within "
            f"{WAIT_SECONDS:.0f} seconds since: they have died, or hang, or do something that takes longer "
            "than parallel.timeout_seconds; look into their logs"
        ) from error


def ranks_that_do_not_answer(store: Store, rank: int, world_size: int, *, wait_seconds: float) -> list[int]:
    """Report and look who else does; every rank that is able to calls it.

    Args:
        store: shared by the ranks.
        rank, world_size: of the caller.
        wait_seconds: how long to wait for the others.
    Returns:
        The ranks that have not reported; [0] where the store, which lives with rank 0, cannot be reached.
    """
    silent = [other for other in range(world_size) if other != rank]
    has_looked = within(
        wait_seconds + _STORE_SECONDS, lambda: _look_for(silent, store, rank, time.monotonic() + wait_seconds)
    )
    return silent if has_looked else [0]


def _look_for(silent: list[int], store: Store, rank: int, deadline: float) -> bool:
    """Take the ranks that report from the list; whether the store has answered at all."""
    has_looked = False
    try:
        store.set(str(rank), "here")
        while True:
            silent[:] = [other for other in silent if not store.check([str(other)])]
            has_looked = True
            if not silent or time.monotonic() > deadline:
                break
            time.sleep(_POLL_SECONDS)
    except DistError as error:
        # Rank 0 may leave first; what was seen until then holds.
        logger.debug("the store is gone: %s", error)
    return has_looked


def _is_of_a_collective(error: RuntimeError) -> bool:
    """NCCL and the store raise an error of their own, gloo a plain one in which its sources are named."""
    return isinstance(error, DistError) or HOST_BACKEND in str(error)
