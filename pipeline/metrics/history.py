"""``history.jsonl`` in the folder of a run: when it started and ended, by which program, and where."""

import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.checkpoint.origin import Origin, now
from pipeline.shared.json_lines import parse_json_lines

__all__ = ["HISTORY_FILE", "Session", "read_history", "record_end", "record_start"]

logger = logging.getLogger(__name__)

HISTORY_FILE = "history.jsonl"
_START, _END = "start", "end"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One start of a run, and its end.

    Attributes:
        origin: the program and the machine.
        first_iteration: the last one that was done before.
        last_iteration, ended_at, exit_code: None if it crashed, was killed, or still runs.
    """

    origin: Origin
    first_iteration: int
    last_iteration: int | None = None
    ended_at: str | None = None
    exit_code: int | None = None


def record_start(folder: Path, origin: Origin, *, iteration: int) -> None:
    """Append that a run starts, after an iteration.

    Raises:
        OSError: it cannot be written.
    """
    _append(folder, {"event": _START, "iteration": iteration, **asdict(origin)})


def record_end(folder: Path, *, iteration: int, exit_code: int) -> None:
    """Append that a run ends, after an iteration; a warning where that cannot be written."""
    try:
        _append(
            folder, {"event": _END, "iteration": iteration, "ended_at": now(), "exit_code": int(exit_code)}
        )
    except OSError as error:
        logger.warning("the end of the run is missing in %s: %s", folder / HISTORY_FILE, error.strerror)


def read_history(folder: Path) -> list[Session]:
    """Read the starts of a run, oldest first; none of those made by earlier versions."""
    path = folder / HISTORY_FILE
    if not path.exists():
        return []
    sessions: list[Session] = []
    for event in parse_json_lines(path.read_text(encoding="utf-8")):
        if event.get("event") == _START:
            origin = TypeAdapter(Origin).validate_python(event)
            sessions.append(Session(origin=origin, first_iteration=int(event["iteration"])))
        elif event.get("event") == _END and sessions:
            sessions[-1] = replace(
                sessions[-1],
                last_iteration=int(event["iteration"]),
                ended_at=str(event["ended_at"]),
                exit_code=int(event["exit_code"]),
            )
    return sessions


def _append(folder: Path, event: dict[str, Any]) -> None:
    path = folder / HISTORY_FILE
    # What a crash has cut short stays a line of its own.
    is_cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if is_cut else "") + json.dumps(event) + "\n")
