"""A few cases out of many in which every two values that ever meet still meet."""

from collections.abc import Hashable, Mapping
from itertools import combinations
from typing import TypeVar

CaseT = TypeVar("CaseT")
Factors = Mapping[str, Hashable]
Pair = tuple[tuple[str, Hashable], tuple[str, Hashable]]


def pairwise_subset(cases: Mapping[CaseT, Factors]) -> list[CaseT]:
    """Choose greedily, the case with most new pairs first and among equals the earliest.

    Args:
        cases: what each case has of every factor it knows, such as {"layout": "PP2", "recompute": "full"}.
    Returns:
        The chosen cases in the order of `cases`: each two (factor, value) that some case has together, some
        chosen case has together.
    """
    pairs = {case: pairs_of(factors) for case, factors in cases.items()}
    missing = set[Pair]().union(*pairs.values())
    chosen = set()
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))
        chosen.add(best)
        missing -= pairs[best]
    return [case for case in cases if case in chosen]


def pairs_of(factors: Factors) -> set[Pair]:
    """All two (factor, value) of a case."""
    return set(combinations(sorted(factors.items(), key=lambda item: item[0]), 2))
