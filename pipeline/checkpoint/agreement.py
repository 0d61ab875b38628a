"""Collectives in which an error on one rank becomes an error on all of them."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch.distributed
from torch.distributed import ProcessGroup

from pipeline.shared.errors import CheckpointError

T = TypeVar("T")


def on_rank_zero(action: Callable[[], T], *, group: ProcessGroup | None = None) -> T:
    """Let rank 0 act and tell all ranks its result.

    Raises:
        CheckpointError: on every rank, where rank 0 had an ``OSError``.
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
    """Let every rank act and tell all ranks all results, by rank.

    Raises:
        CheckpointError: on every rank, where any had an ``OSError``; names the ranks.
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
    """Gather names, so that every rank refuses, and for the same reason."""
    return sorted({name for of_rank in on_all_ranks(lambda: list(names)) for name in of_rank})
