"""How long a run may take to end after a stop signal, by what its steps and saves have taken so far.

Imports no torch, because submission does not.
"""

from pathlib import Path

from pipeline.checkpoint.save_times import SAVE_TIMES_NAME, read_save_seconds
from pipeline.metrics import names
from pipeline.metrics.jsonl import METRICS_FILE, TRAINING
from pipeline.shared.json_lines import parse_json_lines

__all__ = ["SAFETY", "leaving_seconds", "stop_timeout_seconds"]

# For the signal to reach the ranks, for them to leave, and for a cluster to notice.
_LEAVING_SECONDS = 30
# On measured times: storage is shared, and its speed varies.
SAFETY = 2.0
# Old steps may have had other settings; the tail of the file holds at least this many lines.
_TAIL_BYTES = 256 * 1024
_NUM_STEPS = 50
_NUM_SAVES = 20

# Who waits at a terminal can end the wait; a checkpoint that is cut off is lost.
_SHORTEST_STOP_SECONDS = 600.0
_STOP_SECONDS_WITHOUT_SAVES = 3600.0


def leaving_seconds(run_folder: Path) -> float | None:
    """Return twice the time of a step and two saves, and half a minute; None before a step and a save.

    A save in the background may be in progress when the signal arrives, and is followed by the last save.

    Args:
        run_folder: of the run.
    """
    step, save = _longest_step(run_folder / METRICS_FILE), _longest_save(run_folder / SAVE_TIMES_NAME)
    if step is None or save is None:
        return None
    return SAFETY * (step + 2 * save) + _LEAVING_SECONDS


def stop_timeout_seconds(run_folder: Path) -> float:
    """Return how long the ranks of a run may take to save and leave before they are killed.

    Args:
        run_folder: of the run.
    """
    measured = leaving_seconds(run_folder)
    return _STOP_SECONDS_WITHOUT_SAVES if measured is None else max(measured, _SHORTEST_STOP_SECONDS)


def _longest_save(path: Path) -> float | None:
    return max(read_save_seconds(path)[-_NUM_SAVES:], default=None)


def _longest_step(path: Path) -> float | None:
    """Return the longest of the newest logged steps; skip a line that is cut off."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - _TAIL_BYTES, 0))
        tail = file.read().decode("utf-8", errors="replace")
    seconds = []
    for event in parse_json_lines(tail):
        if event.get("event") == TRAINING and event.get(names.ITERATION_TIME) is not None:
            seconds.append(float(event[names.ITERATION_TIME]))
    return max(seconds[-_NUM_STEPS:], default=None)
