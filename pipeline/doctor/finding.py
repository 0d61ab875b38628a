"""The result of one check."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "State"]


class State(StrEnum):
    """How a check ended.

    Attributes:
        OK: as it should be.
        NOTE: absent, and needed only for something that not everyone does.
        WARNING: may hinder a run.
        BROKEN: nothing works, or not what the machine is for.
    """

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check has found.

    Attributes:
        name: what was checked.
        state: how it ended.
        found: what is there.
        cure: what to do; empty where nothing needs to be done.
    """

    name: str
    state: State
    found: str
    cure: str = ""
