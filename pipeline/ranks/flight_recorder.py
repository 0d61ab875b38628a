"""What torch's flight recorder knows of the collectives of this rank.

NCCL's calls return at once. So the place of the main thread says little about whether a rank waits for
others, but a collective that was called and has not ended does.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch._C import _distributed_c10d

__all__ = ["collectives_in_flight", "read_recorder", "write_recorder"]

# NCCL's recorder, in builds of torch with CUDA. That of gloo does not say that a collective has ended.
NCCL_DUMP = "_dump_nccl_trace_json"
_ENDED = "completed"


def read_recorder(dump_name: str = NCCL_DUMP) -> list[dict[str, Any]]:
    """Return the collectives that were recorded, oldest first; none where nothing is recorded.

    Args:
        dump_name: torch's function that returns them.
    """
    dump: Callable[[], bytes | str] | None = getattr(_distributed_c10d, dump_name, None)
    entries: list[dict[str, Any]] = [] if dump is None else json.loads(dump() or "{}").get("entries", [])
    return entries


def collectives_in_flight(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the collectives that were called and have not ended, oldest first."""
    return [str(entry.get("profiling_name", "?")) for entry in entries if entry.get("state") != _ENDED]


def write_recorder(entries: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write what was recorded as JSON, into an existing folder."""
    path.write_text(json.dumps(list(entries), indent=1), encoding="utf-8")
