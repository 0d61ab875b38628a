"""Few cases out of many that still cover all pairs of factors."""

from collections.abc import Hashable, Mapping, Set
from itertools import combinations
from typing import TypeVar

CaseT = TypeVar("CaseT")


def covering_subset(cases: Mapping[CaseT, Set[Hashable]]) -> list[CaseT]:
    """Choose greedily: next is the case that shows most of what is missing, among equals the earliest.

    Args:
        cases: what each case shows.
    Returns:
        Cases, in the order of `cases`, that together show all that all of them show.
    """
    missing = set[Hashable]().union(*cases.values())
    chosen = set()
    while missing:
        best = max(cases, key=lambda case: len(cases[case] & missing))
        chosen.add(best)
        missing -= cases[best]
    return [case for case in cases if case in chosen]


def pairs_of(factors: Mapping[str, Hashable]) -> set[Hashable]:
    """Return all pairs of the factors of a case with their values, which a pairwise subset must cover."""
    return set(combinations(sorted(factors.items()), 2))
