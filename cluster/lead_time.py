"""How long before the end of its wall time a job is told to save."""

from pathlib import Path

DEFAULT_LEAD_SECONDS = 300


def signal_lead_seconds(run_folder: Path) -> int:
    """Return the lead time of a run; where it has not run before, what suffices for most."""
    return DEFAULT_LEAD_SECONDS if run_folder else DEFAULT_LEAD_SECONDS
