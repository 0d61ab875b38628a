"""How long each save of a run has taken: a line per save in the run's folder, for who plans the next one."""

import json
from pathlib import Path

SAVE_TIMES_NAME = "save_times.jsonl"


def record_save_seconds(path: Path, *, iteration: int, seconds: float) -> None:
    """Append a save.

    Args:
        path: of the file.
        iteration: that was saved.
        seconds: from the beginning of the save until it was on disk.
    """
    with path.open("a", encoding="ascii") as file:
        file.write(json.dumps({"iteration": iteration, "seconds": round(seconds, 3)}) + "\n")


def read_save_seconds(path: Path) -> list[float]:
    """Return what the saves of a run have taken, oldest first; none without the file.

    A line that a crash has cut off is left out.
    """
    if not path.exists():
        return []
    found = []
    for line in path.read_text(encoding="ascii", errors="replace").splitlines():
        try:
            found.append(float(json.loads(line)["seconds"]))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            continue
    return found
