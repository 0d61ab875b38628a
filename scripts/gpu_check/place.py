"""Where a check runs and what it measures with."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from megatron_ext.device import synchronize


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Sizes and folder of a check.

    Attributes:
        is_tiny: sizes for a CPU, which show only that the check itself works.
        folder: for its files.
    """

    is_tiny: bool
    folder: Path

    def choose(self, full: Any, tiny: Any) -> Any:
        """Return one of two sizes."""
        return tiny if self.is_tiny else full


@dataclass(slots=True, kw_only=True)
class Findings:
    """What a check measured, as it goes.

    Attributes:
        figures: plain values by name.
        wrong: what must not be so; the check has passed if there is nothing.
        summary: a line for people.
    """

    figures: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    summary: str = ""

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note what is wrong if something does not hold."""
        if not holds:
            self.wrong.append(otherwise)


def seconds_of(action: Callable[[], object], *, repeats: int = 5, warm_ups: int = 2) -> float:
    """Return the median time of an action on the device."""
    for _ in range(warm_ups):
        action()
    synchronize()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        synchronize()
        times.append(time.perf_counter() - started)
    return median(times)
