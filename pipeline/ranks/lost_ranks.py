"""Name the ranks that no longer respond when a collective has failed.

The error of a collective that timed out says that it waited, not for whom: in a pipeline every stage waits
for its neighbour, so the rank that sees the error is rarely next to the one that died. Therefore each rank
whose collective has failed reports in the job's key-value store and checks which others do. Ranks that wait
for the same one time out within moments of each other; a rank that has died or hangs never reports.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed
from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from megatron_ext.device import HOST_BACKEND
from pipeline.shared.bounded import wait_until, within

__all__ = ["LostRanksError", "find_lost_ranks", "naming_lost_ranks"]

logger = logging.getLogger(__name__)

# How long a rank waits for the reports of the others.
WAIT_SECONDS = 5.0
# Requests to a store whose process is stopped never return.
_STORE_SECONDS = 2.0


class LostRanksError(RuntimeError):
    """Ranks of the job have died or hang.

    Attributes:
        ranks: those that have not responded.
    """

    def __init__(self, message: str, *, ranks: list[int]) -> None:
        super().__init__(message)
        self.ranks = ranks


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Wrap all work of a rank in a started process group.

    Raises:
        LostRanksError: instead of the error of a collective, if there are ranks that do not respond.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_a_collective(error):
            raise
        rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        store = PrefixStore("lost ranks", _get_default_store())
        lost = find_lost_ranks(store, rank, world_size, wait_seconds=WAIT_SECONDS)
        if not lost:
            raise
        raise LostRanksError(
            f"a collective of rank {rank} of {world_size} failed, and ranks {lost} have not responded within "
            f"{WAIT_SECONDS:.0f} seconds since: they have died, or hang, or do something that takes longer "
            "than parallel.timeout_seconds; look into their logs",
            ranks=lost,
        ) from error


def find_lost_ranks(store: Store, rank: int, world_size: int, *, wait_seconds: float) -> list[int]:
    """Report this rank and wait for the reports of the others; called by every rank that still can.

    Args:
        store: shared by the ranks.
        rank, world_size: of the caller.
        wait_seconds: how long to wait for the others.
    Returns:
        The ranks that have not reported; [0] if the store, which lives in rank 0's process, does not respond.
    """
    silent = [other for other in range(world_size) if other != rank]
    has_responded = False

    def all_have_reported() -> bool:
        nonlocal has_responded
        silent[:] = [other for other in silent if not store.check([str(other)])]
        has_responded = True
        return not silent

    def collect_reports() -> None:
        try:
            store.set(str(rank), "here")
            wait_until(all_have_reported, seconds=wait_seconds)
        except DistError as error:
            # Rank 0 may have finished first and taken the store with it; what was seen until then holds.
            logger.debug("the store is gone: %s", error)

    # In a thread that can be left behind, because the store may be what hangs.
    within(wait_seconds + _STORE_SECONDS, collect_reports)
    return silent if has_responded else [0]


def _is_of_a_collective(error: RuntimeError) -> bool:
    """Recognize the errors of collectives: NCCL and the store have a class, gloo names its source files."""
    return isinstance(error, DistError) or HOST_BACKEND in str(error)
