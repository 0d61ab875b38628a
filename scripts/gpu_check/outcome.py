"""The result of a check."""

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.shared.files import write_atomically

# In the folder of a check.
OUTCOME_NAME = "outcome.json"


class Status(StrEnum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    """Something was measured that must not be so."""
    CRASHED = "crashed"
    """The check did not come to its end."""
    OVERDUE = "overdue"
    """It was ended at its limit of time."""
    LEFT_OUT = "left out"
    """There was no time left to begin it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a check found.

    Attributes:
        name: of the check.
        status: how it ended.
        summary: a line for the table.
        device: it ran on.
        is_tiny: whether sizes were those of a test of the check itself.
        seconds: with the start of its process.
        figures: everything that was measured, by name, as plain values.
        findings: what must not be so.
    """

    name: str
    status: Status
    summary: str = ""
    device: str = ""
    is_tiny: bool = False
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def as_line(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    def save(self, file: Path) -> None:
        """Write it for the process that has started the check."""
        write_atomically(file, self.as_line() + "\n")


def load_outcome(file: Path) -> Outcome | None:
    """Read what :meth:`Outcome.save` wrote; None if there is no such file."""
    if not file.exists():
        return None
    values = json.loads(file.read_text(encoding="utf-8"))
    return Outcome(**{**values, "status": Status(values["status"])})
