"""How long before the end of its wall time a job receives the stop signal."""

import math
from pathlib import Path

from pipeline.config.submit_section import wall_seconds
from pipeline.metrics.leaving_time import SAFETY, leaving_seconds

DEFAULT_LEAD_SECONDS = 300
# SLURM takes no more.
LONGEST_LEAD_SECONDS = 65535


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
    measured = leaving_seconds(run_folder)
    lead = DEFAULT_LEAD_SECONDS
    if planned_step_seconds is not None:
        # A save of unknown length takes no longer than the default leaves for one.
        lead = max(lead, math.ceil(SAFETY * planned_step_seconds) + DEFAULT_LEAD_SECONDS // 2)
    if measured is not None:
        lead = math.ceil(measured)
    longest = LONGEST_LEAD_SECONDS if wall_time is None else max(wall_seconds(wall_time) // 2, 1)
    return min(lead, longest, LONGEST_LEAD_SECONDS)
