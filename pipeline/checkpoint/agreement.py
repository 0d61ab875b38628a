"""Collectives that turn an error on one rank into an error on all of them.

A rank that raised alone would leave the others waiting in their next collective until it times out.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch.distributed
from torch.distributed import ProcessGroup

from pipeline.shared.errors import CheckpointError

T = TypeVar("T")


def on_rank_zero(action: Callable[[], T], *, group: ProcessGroup | None = None) -> T:
    """Run an action on rank 0 and return its result on all ranks.

    Raises:
        CheckpointError: on every rank, if rank 0 had one or an ``OSError``.
    """
    outcome: list[Any] = [None]
    if torch.distributed.get_rank(group) == 0:
        try:
            outcome = [action()]
        except (OSError, CheckpointError) as error:
            outcome = [error]
    torch.distributed.broadcast_object_list(outcome, src=0, group=group)
    if isinstance(outcome[0], Exception):
        raise CheckpointError(f"rank 0: {outcome[0]}") from outcome[0]
    result: T = outcome[0]
    return result


def on_all_ranks(action: Callable[[], T], *, group: ProcessGroup | None = None) -> list[T]:
    """Run an action on every rank and return all results on all ranks, by rank.

    Raises:
        CheckpointError: on every rank, if any had one or an ``OSError``; names these ranks.
    """
    outcome: Any
    try:
        outcome = action()
    except (OSError, CheckpointError) as error:
        outcome = error
    outcomes: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(outcomes, outcome, group=group)
    failures = [
        f"rank {rank}: {found}" for rank, found in enumerate(outcomes) if isinstance(found, Exception)
    ]
    if failures:
        raise CheckpointError("; ".join(failures))
    return outcomes


def names_on_all_ranks(names: Iterable[str]) -> list[str]:
    """Return the names of all ranks, so that all of them report the same error."""
    return sorted({name for of_rank in on_all_ranks(lambda: list(names)) for name in of_rank})
