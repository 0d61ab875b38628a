"""Cases on layouts, compared with one process: those of a layout are computed together."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tests.support.layout_steps import Compared
from tests.support.layouts import LAYOUTS
from tests.support.ranks import SharedRanks


class OnLayout(Protocol):
    """A case that is computed on a layout."""

    @property
    def layout(self) -> str:
        """Its name."""
        ...


CaseT = TypeVar("CaseT", bound=OnLayout)


class SideBySide(Generic[CaseT]):
    """Cases of several layouts; those of a layout are computed together when the first is needed."""

    def __init__(
        self,
        cases: Sequence[CaseT],
        compare: Callable[[Sequence[CaseT], Path], list[Compared]],
        references: Path,
        ranks: SharedRanks,
    ) -> None:
        """Compute nothing yet.

        Args:
            cases: that will be needed.
            compare: computes cases of one layout on a rank and compares each with the references.
            references: file with the results of one process.
            ranks: that compute the cases.
        """
        self._cases = cases
        self._compare = compare
        self._references = references
        self._ranks = ranks
        self._found: dict[CaseT, list[Compared]] = {}

    def compared(self, case: CaseT) -> list[Compared]:
        """Return the comparison of a case by rank."""
        if case not in self._found:
            together = [other for other in self._cases if other.layout == case.layout]
            by_rank = self._ranks.run(
                self._compare,
                LAYOUTS[case.layout].world_size,
                together,
                self._references,
                timeout_seconds=60 + 20 * len(together),
            )
            self._found.update(zip(together, map(list, zip(*by_rank, strict=True)), strict=True))
        return self._found[case]
