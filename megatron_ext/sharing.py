"""Which rank holds what, where ranks share things that cannot be divided."""

from collections.abc import Sequence


def balanced_shares(sizes: Sequence[float], num_shares: int) -> list[list[int]]:
    """Distribute things by size: the largest first, each to the share with the least so far.

    Args:
        sizes: of the things.
        num_shares: at least 1.
    Returns:
        For each share the numbers of its things, in rising order.
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    totals = [0.0] * num_shares
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        share = totals.index(min(totals))
        shares[share].append(number)
        totals[share] += sizes[number]
    return [sorted(share) for share in shares]
