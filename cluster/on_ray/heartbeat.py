"""Heartbeats that the driver of a job writes into the job's folder.

The folder is shared, so they tell a dead training from a dead Ray: when Ray no longer responds, they show how
long the job was alive and what it was doing.
"""

from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.shared.files import write_atomically

HEARTBEAT_NAME = "heartbeat.json"


class Heartbeat(BaseModel):
    """What a job was doing when it was last known to be alive.

    Attributes:
        time: in UTC.
        activity: in words.
        hosts: of the ranks, in their order.
        alive_ranks: how many run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: datetime
    activity: str
    hosts: tuple[str, ...] = ()
    alive_ranks: int = 0

    @property
    def age_seconds(self) -> float:
        """Seconds since it was written."""
        return (datetime.now(UTC) - self.time).total_seconds()


def save_heartbeat(job_folder: Path, beat: Heartbeat) -> None:
    """Write a heartbeat atomically."""
    write_atomically(job_folder / HEARTBEAT_NAME, (beat.model_dump_json(indent=2) + "\n").encode())


def load_heartbeat(job_folder: Path) -> Heartbeat | None:
    """Return the last heartbeat, or None where there is none that can be read."""
    try:
        return Heartbeat.model_validate_json((job_folder / HEARTBEAT_NAME).read_bytes())
    except (OSError, ValidationError):
        return None
