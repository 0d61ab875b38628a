"""How long the saves of a run have taken: one line per save in the run's folder.

Whoever submits the next job derives from it how long before the end of its wall time a run must start saving.
Imports no torch, because submission does not.
"""

import json
from pathlib import Path

from pipeline.shared.json_lines import parse_json_lines

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
    """Return how long the saves of a run have taken, oldest first; empty without the file.

    Lines that a crash has cut off are skipped.
    """
    if not path.exists():
        return []
    found = []
    for save in parse_json_lines(path.read_text(encoding="ascii", errors="replace")):
        try:
            found.append(float(save["seconds"]))
        except (KeyError, TypeError, ValueError):
            continue
    return found
