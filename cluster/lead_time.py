"""How long before the end of its wall time a job receives the stop signal."""

import math
from pathlib import Path

from pipeline.checkpoint.save_times import SAVE_TIMES_NAME, read_save_seconds
from pipeline.config.submit_section import wall_seconds
from pipeline.metrics import names
from pipeline.metrics.jsonl import METRICS_FILE, TRAINING
from pipeline.shared.json_lines import parse_json_lines

DEFAULT_LEAD_SECONDS = 300
# SLURM takes no more.
LONGEST_LEAD_SECONDS = 65535
# For the signal to reach the ranks, for them to leave, and for the cluster to notice.
_LEAVING_SECONDS = 30
# On measured times: storage is shared, and its speed varies.
_SAFETY = 2.0
# Old steps may have had other settings; the tail of the file holds at least this many lines.
_TAIL_BYTES = 256 * 1024
_NUM_STEPS = 50
_NUM_SAVES = 20


def signal_lead_seconds(
    run_folder: Path, *, wall_time: str | None, planned_step_seconds: float | None = None
) -> int:
    """Return the lead time of a run: twice the time of a step and two saves, and half a minute.

    A save in the background may be in progress when the signal arrives, and is followed by the last save.

    Args:
        run_folder: of the run; without an earlier start in it, the default applies.
        planned_step_seconds: of a run that has not started; twice as long a step, and its save, still fit.
        wall_time: of the job, [DAYS-]HH:MM:SS; at least half of it is left for training.
    """
    step, save = _longest_step(run_folder / METRICS_FILE), _longest_save(run_folder / SAVE_TIMES_NAME)
    lead = DEFAULT_LEAD_SECONDS
    if planned_step_seconds is not None:
        # A save of unknown length takes no longer than the default leaves for one.
        lead = max(lead, math.ceil(_SAFETY * planned_step_seconds) + DEFAULT_LEAD_SECONDS // 2)
    if step is not None and save is not None:
        lead = math.ceil(_SAFETY * (step + 2 * save)) + _LEAVING_SECONDS
    longest = LONGEST_LEAD_SECONDS if wall_time is None else max(wall_seconds(wall_time) // 2, 1)
    return min(lead, longest, LONGEST_LEAD_SECONDS)


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
