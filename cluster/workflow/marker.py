"""The marker of a workflow step, `workflow/<name>.json` in the run folder: what ran, on what, and its output.

The job writes it twice: when the step begins, and when it has ended.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from pipeline.config.workflow_section import MARKER_FOLDER
from pipeline.shared.errors import ClusterError
from pipeline.shared.files import write_atomically
from pipeline.shared.secrets import mask_text

# Where runs of earlier versions keep theirs.
_OLD_FOLDER = "stages"


class Marker(BaseModel):
    """One run of a workflow step.

    Attributes:
        step: its name.
        arguments: of `megaponder`.
        settings: all that its output depends on besides its inputs, by dotted name.
        inputs: identity of each input when the step began; None: it did not exist.
        job: folder of the job that ran it.
        started_at, finished_at: in UTC; finished_at is None while it runs, or if it was killed.
        exit_code: of the command.
        output: identity of its output; None unless it succeeded.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: str = Field(validation_alias=AliasChoices("step", "stage"))
    arguments: tuple[str, ...]
    settings: dict[str, Any]
    inputs: dict[str, str | None]
    job: str
    started_at: datetime
    finished_at: datetime | None = None
    exit_code: int | None = None
    output: str | None = None

    def ended(self, exit_code: int, output: str | None) -> "Marker":
        """Return the marker of this run after its end."""
        changes = {"finished_at": datetime.now(UTC), "exit_code": exit_code, "output": output}
        return self.model_copy(update=changes)


def save_marker(run_folder: Path, marker: Marker) -> None:
    """Write a marker atomically."""
    marker = marker.model_copy(update={"arguments": tuple(mask_text(word) for word in marker.arguments)})
    path = _path(run_folder, marker.step)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (marker.model_dump_json(indent=2) + "\n").encode())


def load_marker(run_folder: Path, step: str) -> Marker | None:
    """Return the marker of a step; None if it has never run.

    Raises:
        ClusterError: it cannot be read.
    """
    path = _path(run_folder, step)
    if not path.exists():
        path = run_folder / _OLD_FOLDER / path.name
    if not path.exists():
        return None
    try:
        return Marker.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ClusterError(
            f"{path} must be the marker of a step, but cannot be read ({error}); delete it to run the step "
            "again"
        ) from error


def _path(run_folder: Path, step: str) -> Path:
    return run_folder / MARKER_FOLDER / f"{step}.json"
