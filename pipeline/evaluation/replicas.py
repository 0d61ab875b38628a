"""Work that the replicas of a model share: each does a part, and all get the complete result."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed

from megatron_ext.parallel.groups import ParallelGroups

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_replicas(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Sequence[Result]],
    *,
    size: Callable[[Item], int],
    groups: ParallelGroups,
) -> list[Result]:
    """Run work on the data-parallel replicas together; all ranks call this with the same items.

    Args:
        items: inputs of the work.
        work: gives one result for each item that it gets; it gets long items first.
        size: how much work an item is; the replicas get equal shares.
        groups: the layout.
    Returns:
        One result for each item, in the order of the items, on every rank.
    """
    order = sorted(range(len(items)), key=lambda index: -size(items[index]))
    own = order[groups.dp_rank :: groups.dp_size]
    results = list(zip(own, work([items[index] for index in own]), strict=True))
    parts: list[list[tuple[int, Result]]] = [[] for _ in range(groups.dp_size)]
    torch.distributed.all_gather_object(parts, results, group=groups.dp)
    by_index = dict(pair for part in parts for pair in part)
    return [by_index[index] for index in range(len(items))]
