"""Cases on layouts beside the same in one process: what is computed when, and by whom."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from tests.support.layout_steps import Compared
from tests.support.layouts import LAYOUTS
from tests.support.ranks import SharedRanks


class OnLayout(Protocol):
    """Something that is done on a layout."""

    @property
    def layout(self) -> str:
        """Its name."""
        ...


CaseT = TypeVar("CaseT", bound=OnLayout)


class SideBySide(Generic[CaseT]):
    """Cases of several layouts. Those of one layout are computed together when the first is asked for."""

    def __init__(
        self,
        cases: Sequence[CaseT],
        compare: Callable[[Sequence[CaseT], Path], list[Compared]],
        references: Path,
        ranks: SharedRanks,
    ) -> None:
        """Compute nothing yet.

        Args:
            cases: that will be asked for.
            compare: computes cases of one layout on a rank and holds each against the references.
            references: file with what one process computes.
            ranks: that do it.
        """
        self._cases = cases
        self._compare = compare
        self._references = references
        self._ranks = ranks
        self._found: dict[CaseT, list[Compared]] = {}

    def compared(self, case: CaseT) -> list[Compared]:
        """What each rank found of a case."""
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
